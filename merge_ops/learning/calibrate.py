def calibrate(*a, **k): raise NotImplementedError
def moments(*a, **k): raise NotImplementedError
