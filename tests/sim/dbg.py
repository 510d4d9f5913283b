import sys
sys.path[:0] = ["/work/main", "/work/main/tests/sim"]
import faults, world
s, t = int(sys.argv[1]), float(sys.argv[2])
orig = world.World.tick if hasattr(world.World,'tick') else None
def show(w):
    for p in w.living():
        m = p.node.mesh
        print("%.3f"%w.t, p.host.name, "comp", sorted(m.component), "coord", m.coordinator(), "claims", m.claims(), "follows", m.facts["follows"], "links", m.facts["links"], "ready", m.facts["ready"], "wires", sorted(p.wires), {i:(x.facts["follows"],x.facts["claim"],x.facts["links"],x.seq) for i,x in m.members.items()}, "news", {k:list(l.news) for k,l in m.links.items()}, "act", {k:len(b.active) for k,b in p.node.replica.boxes.items()}, m.seq)
        if len(sys.argv)>3:
          print("   ", {r.shown:(r.state.value,{k:v.phase.name for k,v in r.runs.items()}) for r in p.node.queue.in_order()})
        for k,l in m.links.items(): print("     ",k, "2way",l.is_two_way(p.now), "gave",l.gave_first,"got",l.got_first, "heard %.2f echo %.2f"%(p.now-l.heard_at,p.now-l.echoed_at), "hold", l.hold_until-p.now)
init = world.World.__init__
def __init__(self, *a):
    init(self, *a); self.at(t, show, self)
world.World.__init__ = __init__
try: faults.simulate(s)
except Exception as e: print(str(e)[:300])
import os
if os.environ.get("Q"):
    pass
