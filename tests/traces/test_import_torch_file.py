"""Hostile and broken ``.pt`` files: nothing in them may run, and each is an InputError."""

import contextlib
import importlib.metadata
import pickle
import struct
import sys
import time
import zipfile

import numpy as np
import pytest

from moesim.errors import InputError, MissingExtraError, UsageError
from moesim.traces import torch_file
from moesim.traces.bundle import open_trace
from moesim.traces.importers import import_trace
from moesim.traces.importers.contents import ImportOptions
from moesim.traces.torch_file import open_torch_files
from tests.traces import import_samples as samples

MARKER = "executed"


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Name:
    """Pickles as the global of this name."""

    def __init__(self, text):
        self.module, self.name = text.rsplit(".", 1)


def _text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def code(value):
    """Opcodes of a value."""
    if isinstance(value, Name):
        return f"c{value.module}\n{value.name}\n".encode()
    if isinstance(value, Call):
        return code(value.function) + b"(" + b"".join(map(code, value.arguments)) + b"tR"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if value is None:
        return b"N"
    if isinstance(value, int):
        return b"K" + bytes([value])
    if isinstance(value, dict):
        return b"}(" + b"".join(code(k) + code(v) for k, v in value.items()) + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(code, value)) + b"e"
    raise TypeError(value)


def program(value, protocol=3):
    return b"\x80" + bytes([protocol]) + code(value) + b"."


def hostile(marker):
    """Payloads that leave a marker file when unpickled."""
    touch, python = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    inner = program(Call(Name("os.system"), touch))
    method = Call(Name("operator.methodcaller"), "touch")
    system = Call(Name("builtins.getattr"), Call(Name("builtins.__import__"), "os"), "system")
    nested = Call(Name("builtins.eval"), f"__import__('os').system({touch!r})")
    partial = Call(Name("functools.partial"), Name("os.system"), touch)
    path = Call(Name("pathlib.Path"), str(marker))
    calls = {
        "os.system": Call(Name("os.system"), touch),
        "posix.system": Call(Name("posix.system"), touch),
        "os.popen": Call(Name("os.popen"), touch + "; sleep 0.2"),
        "os.mkdir": Call(Name("os.mkdir"), str(marker)),
        "os.mknod": Call(Name("os.mknod"), str(marker)),
        "eval": Call(Name("builtins.eval"), python),
        "exec": Call(Name("builtins.exec"), python),
        "compile": Call(Name("builtins.exec"), Call(Name("builtins.compile"), python, "x", "exec")),
        "open": Call(Name("builtins.open"), str(marker), "w"),
        "subprocess.call": Call(Name("subprocess.call"), ["touch", str(marker)]),
        "subprocess.check_output": Call(Name("subprocess.check_output"), ["touch", str(marker)]),
        "subprocess.getoutput": Call(Name("subprocess.getoutput"), touch),
        "getattr chain": Call(system, touch),
        "nested reduce": Call(Name("builtins.list"), [nested]),
        "functools.partial": Call(partial),
        "methodcaller": Call(method, path),
        "map": Call(Name("builtins.list"), Call(Name("builtins.map"), Name("os.system"), [touch])),
        "pickle.loads": Call(Name("pickle.loads"), inner),
        "importlib": Call(
            Name("builtins.getattr"), Call(Name("importlib.import_module"), "os"), "getcwd"
        ),
        "timeit": Call(Name("timeit.timeit"), python, "pass", Name("time.time"), 1),
        "eval of import": nested,
        "cProfile": Call(Name("cProfile.run"), python, str(marker)),
        "torch storage": Call(Name("torch.storage._load_from_bytes"), inner),
        "shutil.copy": Call(Name("shutil.copy"), sys.executable, str(marker)),
    }
    payloads = {name: program(call) for name, call in calls.items()}
    payloads["in a record"] = program({"records": [{"rank": nested}]})
    payloads["as a key"] = program({"logical_count": [Call(Name("os.system"), touch)]})
    stack_global = b"\x80\x04" + b"\x8c\x05posix" + b"\x8c\x06system" + b"\x93"
    payloads["stack global"] = stack_global + b"(" + _text(touch) + b"tR."
    payloads["inst"] = b"(S" + repr(touch).encode() + b"\nios\nsystem\n."
    payloads["obj"] = b"(cos\nsystem\n" + _text(touch) + b"o."
    payloads["newobj"] = (
        b"\x80\x02"
        + code(Name("subprocess.Popen"))
        + b"("
        + code(["touch", str(marker)])
        + b"t\x81"
        b"0" + code(Call(Name("os.system"), touch)) + b"."
    )
    payloads["build"] = (
        b"\x80\x02"
        + code(Call(Name("types.SimpleNamespace")))
        + b"}"
        + _text("x")
        + code(nested)
        + b"sb."
    )
    return payloads


def archive(path, pickled, extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        out.writestr("archive/data.pkl", pickled)
        out.writestr("archive/byteorder", "little")
        for name, data in extra:
            out.writestr(f"archive/{name}", data)
        out.writestr("archive/version", "3\n")
    return path


def test_no_payload_runs(tmp_path, monkeypatch):
    """Not even when the environment asks torch to load everything."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / MARKER
    payloads = hostile(marker)
    assert len(payloads) >= 30
    files = [archive(tmp_path / f"{i}.pt", data) for i, data in enumerate(payloads.values())]
    answers = tmp_path / "answers"
    answers.mkdir()
    torch_file._run_child(files, answers, 120.0)
    for number, name in enumerate(payloads):
        with pytest.raises(InputError, match="not readable as tensors"):
            torch_file._read_answer(files[number], answers, number)
        assert not marker.exists(), name


def test_the_payloads_are_dangerous(tmp_path):
    """Without the guard they do run; else the test above could not fail."""
    marker = tmp_path / MARKER
    ran = set()
    for name, data in hostile(marker).items():
        # What a payload builds from the result of its call need not work.
        with contextlib.suppress(TypeError, AttributeError, RuntimeError):
            opened = pickle.loads(data)
            opened.close() if name in ("open", "os.popen") else None
        for _ in range(50):  # a child process may still be starting
            if marker.exists():
                break
            time.sleep(0.02 if name == "newobj" else 0)
        if marker.exists():
            ran.add(name)
            marker.rmdir() if marker.is_dir() else marker.unlink()
    assert hostile(marker).keys() - ran <= {"importlib"}


def broken_files(tmp_path):
    import torch

    good = tmp_path / "good.pt"
    torch.save({"x": torch.arange(1000)}, good)
    raw = good.read_bytes()

    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", b"\0" * 2**24)
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as out:
        out.writestr("readme.txt", "hello")
    overlap = bytearray(raw)
    start = overlap.find(b"PK\x01\x02")
    struct.pack_into("<II", overlap, start + 20, len(raw) + 1, len(raw) + 1)
    torch.save({"x": torch.arange(9)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    yield "empty", write("empty.pt", b"")
    yield "text", write("text.pt", b"hello")
    yield "pickle", write("plain.pt", program(Call(Name("os.system"), "true")))
    yield "cut short", write("cut.pt", raw[: len(raw) // 2])
    yield "without its end", write("end.pt", raw[:-30])
    yield "compressed", tmp_path / "bomb.pt"
    yield "another zip", tmp_path / "other.pt"
    yield "overlapping", write("overlap.pt", bytes(overlap))
    yield "legacy format", tmp_path / "old.pt"
    yield "folder", tmp_path
    yield "absent", tmp_path / "none.pt"


def test_broken_archives_are_refused_before_torch(tmp_path, monkeypatch):
    files = dict(broken_files(tmp_path))
    monkeypatch.setattr(torch_file, "_run_child", lambda *_: pytest.fail("reached torch"))
    for name, file in files.items():
        with pytest.raises(InputError) as caught, open_torch_files([file]):
            pass
        assert str(file) in str(caught.value), name


def test_content_that_is_no_tree_of_tensors_is_refused(tmp_path):
    import torch

    loop = b"\x80\x03]q\x00h\x00a."  # a list that holds itself
    shared = b"\x80\x03]q\x00"
    for level in range(1, 12):  # 8 ** 12 nodes through shared parts
        shared += b"](" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 7 + b"e"
        shared += b"q" + bytes([level])
    torch.save({"x": torch.zeros(1).expand(10**12)}, tmp_path / "0.pt")
    archive(tmp_path / "1.pt", loop)
    archive(tmp_path / "2.pt", shared + b".")
    torch.save({"x": torch.zeros(3, dtype=torch.complex64)}, tmp_path / "3.pt")
    torch.save({"x": torch.eye(3).to_sparse()}, tmp_path / "4.pt")
    torch.save({(1, 2): 3}, tmp_path / "5.pt")
    torch.save({"x": 10**30}, tmp_path / "6.pt")
    torch.save({"x": {1, 2}}, tmp_path / "7.pt")
    archive(tmp_path / "8.pt", b"not a pickle")
    archive(tmp_path / "9.pt", b"\x80\x03" + b"(" * 100_000 + b".")
    good = tmp_path / "10.pt"
    torch.save({"x": torch.arange(1000)}, good)
    with zipfile.ZipFile(good) as source:
        parts = {i.filename.partition("/")[2]: source.read(i) for i in source.infolist()}
    pickled = parts.pop("data.pkl")
    archive(good, pickled, [("data/0", parts["data/0"][:8])])  # a storage that is too short
    archive(tmp_path / "11.pt", pickled)  # a storage that is absent
    files = [tmp_path / f"{i}.pt" for i in range(12)]
    answers = tmp_path / "answers"
    answers.mkdir()
    torch_file._run_child(files, answers, 120.0)
    for number, file in enumerate(files):
        with pytest.raises(InputError, match="not readable as tensors"):
            torch_file._read_answer(file, answers, number)


def test_dumps_of_all_ranks_through_torch(tmp_path):
    import torch

    routing = samples.known_routing()
    folder = tmp_path / "dumps"
    folder.mkdir()
    for rank, dump in enumerate(samples.sglang_per_token(routing)):
        for record in dump["records"]:
            record["topk_ids_of_layer"] = torch.from_numpy(record["topk_ids_of_layer"])
            record["global_physical_count"] = torch.from_numpy(record["global_physical_count"])
        table = torch.from_numpy(dump["last_physical_to_logical_map"])
        dump = dump | {"last_physical_to_logical_map": table, "odd": float("nan")}
        torch.save(dump, folder / f"expert_distribution_recorder_1.5_{rank}.pt")
    pattern = folder / "expert*.pt"
    result = import_trace(
        pattern, "sglang", ImportOptions(experts=samples.EXPERTS), tmp_path / "out"
    )
    assert result.dialect == "per_token"
    np.testing.assert_array_equal(open_trace(result.path).routing, routing)


def test_values_keep_their_types(tmp_path):
    import torch

    value = {
        "int8": torch.arange(3, dtype=torch.int8),
        "bfloat16": torch.ones(2, dtype=torch.bfloat16),
        "half": torch.ones(2, dtype=torch.float16),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "view": torch.arange(12).reshape(3, 4).T[1:],
        "long": list(range(50)),
        "short": [1, "a", None, True, 2.5],
        5: {"nested": (1, 2)},
    }
    torch.save(value, tmp_path / "a.pt")
    with open_torch_files([tmp_path / "a.pt"]) as (read,):
        assert read["int8"].dtype == np.int8
        assert read["half"].dtype == np.float16
        assert read["bfloat16"].tolist() == [1.0, 1.0]
        assert read["bool"].tolist() == [True, False]
        assert read["scalar"].shape == ()
        assert read["empty"].shape == (0, 4)
        np.testing.assert_array_equal(read["view"], value["view"].numpy())
        assert read["long"].tolist() == list(range(50))
        assert read["short"] == [1, "a", None, True, 2.5]
        assert read[5] == {"nested": [1, 2]}
        assert not read["int8"].flags.writeable


def test_torch_that_is_missing_or_too_old(tmp_path, monkeypatch):
    file = archive(tmp_path / "a.pt", program({}))

    def version(answer):
        def find(name):
            if answer is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return answer

        monkeypatch.setattr(torch_file.importlib.metadata, "version", find)

    version(None)
    with pytest.raises(MissingExtraError, match=r"moesim\[kernels\]"), open_torch_files([file]):
        pass
    for old in ("2.9.1+cu128", "1.13.0", "2.5"):
        version(old)
        with pytest.raises(UsageError, match=r"2\.10 or newer"), open_torch_files([file]):
            pass


def test_a_reader_that_hangs_or_dies_is_reported(tmp_path, monkeypatch):
    file = archive(tmp_path / "a.pt", program({}))
    with pytest.raises(InputError, match="time limit"), open_torch_files([file], timeout_s=0.05):
        pass
    script = tmp_path / "torch_child.py"
    monkeypatch.setattr(torch_file, "__file__", str(tmp_path / "torch_file.py"))
    script.write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(InputError, match="ended with -9"), open_torch_files([file]):
        pass
    script.write_text("raise ImportError('no torch here')")
    with pytest.raises(InputError, match="no torch here"), open_torch_files([file]):
        pass


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits need /proc")
def test_memory_is_limited(tmp_path, monkeypatch):
    import torch

    torch.save({"x": torch.zeros(2**26, dtype=torch.uint8)}, tmp_path / "a.pt")
    monkeypatch.setattr(torch_file, "EXTRA_MEMORY_BYTES", -3 * 2**26)
    with (
        pytest.raises(InputError, match=r"memory|ended with|not readable"),
        open_torch_files([tmp_path / "a.pt"]),
    ):
        pass
