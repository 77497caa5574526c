"""Where many independent tasks are computed: in this process, in a pool of processes, on Ray.

All of them answer one question (:class:`~moesim.executors.protocol.Executor`): the results of a
function over a list of tasks, as they come. None of them keeps anything: whoever asks stores what
has come, so that work goes on after any of them is killed.
"""
