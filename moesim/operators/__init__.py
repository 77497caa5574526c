"""Run-time physics of single operators: few coefficients and pure functions, shapes → seconds."""
