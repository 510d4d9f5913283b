import sys, time, traceback
sys.path[:0] = ["/work/main", "/work/main/tests/sim"]
from collections import Counter
from faults import simulate
a, b = int(sys.argv[1]), int(sys.argv[2])
t0 = time.time(); bad = Counter(); first = {}
steps = 0
for s in range(a, b):
    try:
        w = simulate(s); steps += w.steps
    except AssertionError as e:
        c = e.__cause__
        k = str(c)[:6].split(" at")[0] if type(c).__name__ == "Broken" else repr(c)[:100]
        bad[k] += 1; first.setdefault(k, []).append(s)
        if len(sys.argv) > 3:
            if type(c).__name__ != "Broken": traceback.print_exception(type(c), c, c.__traceback__)
            print(e)
print("%.1fs" % (time.time() - t0), steps, bad.most_common())
for k, v in first.items(): print(k, v[:12])
