package lease

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// The model: a few nodes run the protocol itself (protocol.go, not a description of
// it) on one record, and everything that can happen to them happens, in every
// order: requests and answers take any time or get lost, a write that its sender
// has given up arrives late, the SDK makes a request again whose answer was lost,
// nodes crash, start again on their volume or on an empty one, and stand still for
// as long as they like. Time passes in ticks as long as the margin, and no node
// knows another's clock: in the protocol all times are on one's own, so each is
// kept here as its distance from now.
//
// What must hold in each state that can be reached:
//
//	safety    no two nodes' fences are open at once, and an upload takes effect
//	          in the replica only while the record there is still its sender's
//	order     a holder's epoch is higher than that of all holders before
//	progress  as long as a node runs, one can come to hold the lease without a
//	          crash, or all that run can find that they have lost it and end, to be
//	          started again
//
// An upload takes effect at most a tick after it was sent: that is what the margin
// is for, and the one assumption that the protocol stands on. Crashes, losses and
// starts are limited in number, time and requests are not.

const (
	tick     = time.Second
	modelTTL = 3 * tick
)

// node is one machine with its volume.
type node struct {
	up     bool
	starts int      // so far: each makes a new owner
	volume []string // owners that the volume remembers
	p      protocol
	m      move  // the request that was heard and not answered yet; rest: none
	got    found // its answer
	none   bool  // there was nothing to read
	out    outcome
	tag    string
	upload int  // ticks since an upload was sent that is under way; -1: none
	late   move // a write whose sender has given up or crashed
}

type world struct {
	rec   record
	tag   string // "" when there is no record yet
	held  uint64 // the highest epoch of a holder
	nodes []node
	left  budget
	wrong string
}

// budget is how often in a run what is rare may happen.
type budget struct{ crashes, losses, starts, wipes int }

func (w world) clone() world {
	w.nodes = slices.Clone(w.nodes)
	return w
}

func modelTag(r record) string {
	if r.Owner == "" {
		return ""
	}
	b := append(make([]byte, 0, 32), r.Owner...)
	b = strconv.AppendUint(append(b, '/'), r.Epoch, 10)
	b = strconv.AppendUint(append(b, '/'), r.Renewal, 10)
	return string(strconv.AppendBool(append(b, '/'), r.Released))
}

// put is the replica's conditional write.
func (w *world) put(rec record, ifTag string) (outcome, string) {
	if ifTag != w.tag {
		return conflict, ""
	}
	if rec.Owner != w.rec.Owner && rec.Epoch <= w.held {
		w.wrong = fmt.Sprintf("epoch %d follows epoch %d", rec.Epoch, w.held)
	}
	w.rec, w.tag, w.held = rec, modelTag(rec), max(w.held, rec.Epoch)
	return written, w.tag
}

// start begins a run of the program.
func (n *node) start(i int) {
	n.starts++
	me := fmt.Sprintf("%d.%d", i, n.starts)
	n.up, n.m, n.upload = true, move{}, -1
	n.p = protocol{me: me, mine: n.volume, ttl: modelTTL, margin: tick}
	n.p.rec = record{Owner: me, TTLSeconds: modelTTL.Seconds()}
	n.volume = append(slices.Clone(n.volume), me)
}

// fail ends a request without an answer.
func (n *node) fail() {
	if n.m.kind == read {
		n.p.failedToRead(0)
	} else {
		n.p.wrote(0, failed, "")
	}
	n.m = move{}
}

// arrive lets the request get there. That it may take a while needs no step of its
// own: a node may also wait before it sends, which for the protocol is the same or,
// as it counts from when it sent, worse.
func (n *node) arrive(w *world) {
	if n.m.kind == write {
		n.out, n.tag = w.put(n.m.rec, n.m.ifTag)
		return
	}
	n.none, n.got = w.tag == "", found{rec: w.rec, tag: w.tag}
}

func (n *node) answer() {
	switch {
	case n.m.kind == write:
		n.p.wrote(0, n.out, n.tag)
	case n.none:
		n.p.saw(0, nil)
	default:
		n.p.saw(0, &n.got)
	}
	n.m, n.got = move{}, found{}
}

// event is one thing that can happen to a node.
type event struct {
	name string
	can  func(w *world, n *node) bool
	does func(w *world, n *node, i int)
}

func idle(n *node) bool { return n.up && n.m.kind == rest }

// due returns what a node wants to ask now.
func (n *node) due() moveKind {
	p := n.p
	return p.next(0).kind
}

var events = []event{
	{"asks and is heard", func(_ *world, n *node) bool { k := n.due(); return idle(n) && (k == read || k == write) },
		func(w *world, n *node, _ int) { n.m = n.p.next(0); n.arrive(w) }},
	{"asks and gives up", func(w *world, n *node) bool {
		k := n.due()
		return idle(n) && (k == read || k == write) && w.left.losses > 0
	}, func(w *world, n *node, _ int) {
		w.left.losses--
		if n.m = n.p.next(0); n.m.kind == write && n.late.kind == rest {
			n.late = n.m
		}
		n.fail()
	}},
	{"is answered", func(_ *world, n *node) bool { return n.up && n.m.kind != rest },
		func(_ *world, n *node, _ int) { n.answer() }},
	{"gets no answer", func(w *world, n *node) bool { return n.up && n.m.kind != rest && w.left.losses > 0 },
		func(w *world, n *node, _ int) { w.left.losses--; n.fail() }},
	{"gets no answer and asks again", func(w *world, n *node) bool { return n.up && n.m.kind == write && w.left.losses > 0 },
		func(w *world, n *node, _ int) { w.left.losses--; n.arrive(w) }},
	{"is heard late", func(_ *world, n *node) bool { return n.late.kind == write },
		func(w *world, n *node, _ int) { w.put(n.late.rec, n.late.ifTag); n.late = move{} }},
	// At the last moment: any earlier it arrives while the fence is still open.
	{"sends an upload", func(_ *world, n *node) bool { return n.up && n.upload < 0 && n.p.open(0) && !n.p.open(tick) },
		func(_ *world, n *node, _ int) { n.upload = 0 }},
	{"has uploaded", func(_ *world, n *node) bool { return n.upload >= 0 },
		func(w *world, n *node, i int) {
			n.upload = -1
			if !strings.HasPrefix(w.rec.Owner, strconv.Itoa(i)+".") {
				w.wrong = fmt.Sprintf("an upload of node %d takes effect when %s has the lease", i, w.rec.Owner)
			}
		}},
	{"gives the lease back and ends", func(_ *world, n *node) bool { return idle(n) && n.upload < 0 && n.p.owned && n.p.phase == holding },
		func(w *world, n *node, _ int) {
			rec := n.p.rec
			rec.Renewal++
			rec.Released = true
			w.put(rec, n.p.tag)
			n.up = false
		}},
	{"has lost and ends", func(_ *world, n *node) bool { return idle(n) && n.p.phase == lost },
		func(_ *world, n *node, _ int) { n.up = false }},
	{"crashes", func(w *world, n *node) bool { return n.up && w.left.crashes > 0 },
		func(w *world, n *node, _ int) { w.left.crashes--; n.up, n.m = false, move{} }},
	{"crashes when it has asked", func(w *world, n *node) bool {
		return idle(n) && n.due() == write && n.late.kind == rest && w.left.crashes > 0
	},
		func(w *world, n *node, _ int) { w.left.crashes--; n.late = n.p.next(0); n.up = false }},
	{"starts", func(w *world, n *node) bool { return !n.up && w.left.starts > 0 },
		func(w *world, n *node, i int) { w.left.starts--; n.start(i) }},
	{"starts on an empty volume", func(w *world, n *node) bool { return !n.up && w.left.starts > 0 && w.left.wipes > 0 && n.starts > 0 },
		func(w *world, n *node, i int) { w.left.starts--; w.left.wipes--; n.volume = nil; n.start(i) }},
}

// pass lets a tick pass, unless an upload has been under way for one already.
func (w *world) pass() bool {
	for i := range w.nodes {
		n := &w.nodes[i]
		if n.upload >= 1 {
			return false
		}
		if n.upload == 0 {
			n.upload++
		}
		n.p.sent -= tick
		n.p.again = max(n.p.again-tick, 0)
		n.p.until = max(n.p.until-tick, 0)
		n.p.since -= tick
		n.forget()
	}
	return true
}

// forget sets times that are so long ago that they make no difference to one value, so
// that the number of states is finite.
func (n *node) forget() {
	const long = -modelTTL - tick
	if n.m.kind == rest {
		n.p.sent = 0
		n.p.since = max(n.p.since, long)
	} else if n.p.sent < long {
		n.p.since += long - n.p.sent
		n.p.sent = long
	}
	if n.p.phase != waiting {
		n.p.since, n.p.seen = 0, found{}
	}
	n.p.since = max(n.p.since, n.p.sent+long)
}

// check returns what is wrong with a state.
func (w *world) check() string {
	open := 0
	for i := range w.nodes {
		if n := &w.nodes[i]; n.up && n.p.open(0) {
			open++
		}
	}
	if open > 1 {
		return fmt.Sprintf("%d nodes may write", open)
	}
	return w.wrong
}

func (w *world) someoneHolds() bool {
	return slices.ContainsFunc(w.nodes, func(n node) bool { return n.up && n.p.open(0) })
}

// running reports whether a node runs that has not lost.
func (w *world) running() bool {
	return slices.ContainsFunc(w.nodes, func(n node) bool { return n.up && n.p.phase != lost })
}

// key is the same for states that nothing that can happen distinguishes. Renewals and
// epochs are only ever compared with one another, so they count by their rank.
func (w *world) key() []byte {
	var recs []*record
	for i := range w.nodes {
		n := &w.nodes[i]
		recs = append(recs, &n.p.rec, &n.p.seen.rec, &n.m.rec, &n.got.rec, &n.late.rec)
	}
	recs = append(recs, &w.rec)
	epochs := []uint64{w.held}
	renewals := make(map[string][]uint64)
	for _, r := range recs {
		epochs = append(epochs, r.Epoch)
		renewals[r.Owner] = append(renewals[r.Owner], r.Renewal)
	}
	rank := func(all []uint64, v uint64) (below byte) {
		slices.Sort(all)
		for i, x := range all {
			if x < v && (i == 0 || x != all[i-1]) {
				below++
			}
		}
		return below
	}
	var b []byte
	text := func(s string) { b = append(append(b, s...), 0) }
	moment := func(t at) { b = append(b, byte(int8(t/tick))) }
	yes := func(v ...bool) {
		for _, x := range v {
			if x {
				b = append(b, 1)
			} else {
				b = append(b, 0)
			}
		}
	}
	putRecord := func(r *record) {
		text(r.Owner)
		b = append(b, rank(epochs, r.Epoch), rank(renewals[r.Owner], r.Renewal))
		yes(r.Released)
	}
	// Tags are of records; one that no record in this state has any more is like
	// any other such.
	tags := make([]string, len(recs))
	for i, r := range recs {
		tags[i] = modelTag(*r)
	}
	putTag := func(t string) {
		if t == "" {
			b = append(b, 0xff)
			return
		}
		b = append(b, byte(slices.Index(tags, t)+1))
	}
	putRecord(&w.rec)
	putTag(w.tag)
	b = append(b, rank(epochs, w.held), byte(w.left.crashes), byte(w.left.losses), byte(w.left.starts), byte(w.left.wipes))
	for i := range w.nodes {
		n := &w.nodes[i]
		b = append(b, byte(n.starts), byte(n.upload), byte(n.m.kind), byte(n.late.kind), byte(n.p.phase))
		yes(n.up, n.none, n.p.owned)
		b = append(b, byte(n.out))
		for _, owner := range n.volume {
			text(owner)
		}
		b = append(b, 0xfe)
		for _, t := range []at{n.p.sent, n.p.again, n.p.until, n.p.since} {
			moment(t)
		}
		for _, r := range []*record{&n.p.rec, &n.p.seen.rec, &n.m.rec, &n.got.rec, &n.late.rec} {
			putRecord(r)
		}
		for _, t := range []string{n.p.tag, n.p.seen.tag, n.m.ifTag, n.got.tag, n.late.ifTag, n.tag} {
			putTag(t)
		}
	}
	return b
}

// tidy clears what no longer matters.
func (w *world) tidy() {
	for i := range w.nodes {
		n := &w.nodes[i]
		if !n.up {
			n.p, n.m = protocol{}, move{}
		}
		if !n.p.owned && (n.p.phase == looking || n.p.phase == waiting) {
			n.p.tag, n.p.rec.Epoch = "", 0 // of nothing that is going to be written
		}
		if n.p.phase == lost && n.m.kind == rest {
			n.p = protocol{me: n.p.me, phase: lost}
		}
		// What the volume remembers of epochs can only make the next one higher.
		n.p.epochs = 0
		if n.m.kind == rest {
			n.out, n.tag, n.got, n.none = 0, "", found{}, false
		}
		n.forget()
	}
}

type search struct {
	index map[[16]byte]int32 // by a hash of its key: two of 2^24 states share one with a probability of 2^-81
	from  []int32            // where each state was reached from, and how
	how   []int16            // the event's number, after the node's; -1: a tick
	good  []bool             // as progress wants it
	edges []byte             // pairs of uint32
}

func named(how int16) string {
	if how < 0 {
		return "a tick passes"
	}
	return fmt.Sprintf("node %d %s", int(how)/len(events), events[int(how)%len(events)].name)
}

func (s *search) path(i int32) string {
	var steps []string
	for ; i > 0; i = s.from[i] {
		steps = append(steps, named(s.how[i]))
	}
	slices.Reverse(steps)
	return strings.Join(steps, "\n")
}

// explore walks through all states that can be reached, and returns what is wrong
// with one of them, with the way there.
func explore(nodes int, b budget) (states int, wrong string) {
	s := &search{index: make(map[[16]byte]int32)}
	first := world{left: b, nodes: make([]node, nodes)}
	for i := range first.nodes {
		first.nodes[i].upload = -1
	}
	first.tidy()
	var queue []world
	// add notes a state that can be reached; its nodes are only lent.
	add := func(w world, from int32, how int16) {
		sum := sha256.Sum256(w.key())
		key := [16]byte(sum[:16])
		id, ok := s.index[key]
		if !ok {
			id = int32(len(s.from))
			s.index[key] = id
			s.from, s.how = append(s.from, from), append(s.how, how)
			s.good = append(s.good, w.someoneHolds() || !w.running())
			queue = append(queue, w.clone())
		}
		if how >= 0 && strings.Contains(events[int(how)%len(events)].name, "crashes") {
			return // no way to progress
		}
		s.edges = binary.LittleEndian.AppendUint32(s.edges, uint32(from))
		s.edges = binary.LittleEndian.AppendUint32(s.edges, uint32(id))
	}
	add(first, 0, -1)
	lent := make([]node, nodes)
	for done := 0; len(queue) > 0; done++ {
		w := queue[0]
		queue[0] = world{}
		queue = queue[1:]
		from := int32(done)
		again := func() world {
			next := w
			next.nodes = lent
			copy(lent, w.nodes)
			return next
		}
		visit := func(next world, how int16) string {
			next.tidy()
			if bad := next.check(); bad != "" {
				return fmt.Sprintf("%s:\n%s\n%s", bad, s.path(from), named(how))
			}
			add(next, from, how)
			return ""
		}
		for i := range w.nodes {
			if i > 0 && w.nodes[i-1].starts == 0 {
				break // one new node is like another
			}
			for j, e := range events {
				if !e.can(&w, &w.nodes[i]) {
					continue
				}
				next := again()
				e.does(&next, &next.nodes[i], i)
				if bad := visit(next, int16(i*len(events)+j)); bad != "" {
					return len(s.from), bad
				}
			}
		}
		if next := again(); next.pass() {
			if bad := visit(next, -1); bad != "" {
				return len(s.from), bad
			}
		}
	}
	return len(s.from), s.stuck()
}

// stuck returns a way to a state from which no node that runs can come to hold the
// lease.
func (s *search) stuck() string {
	back := make([][]int32, len(s.from))
	for i := 0; i < len(s.edges); i += 8 {
		from, to := binary.LittleEndian.Uint32(s.edges[i:]), binary.LittleEndian.Uint32(s.edges[i+4:])
		back[to] = append(back[to], int32(from))
	}
	can := slices.Clone(s.good)
	var queue []int32
	for i, good := range s.good {
		if good {
			queue = append(queue, int32(i))
		}
	}
	for len(queue) > 0 {
		i := queue[0]
		queue = queue[1:]
		for _, j := range back[i] {
			if !can[j] {
				can[j] = true
				queue = append(queue, j)
			}
		}
	}
	for i := range can {
		if !can[i] {
			return "nobody can get the lease any more:\n" + s.path(int32(i))
		}
	}
	return ""
}

// What each size of the model is for: two nodes with much that goes wrong, and
// three that only compete. SLASHA_MODEL=all adds sizes that take many minutes.
func TestModel(t *testing.T) {
	const (
		quick = iota
		usual // but not with the race detector
		long
	)
	sizes := []struct {
		nodes int
		left  budget
		takes int
	}{
		{2, budget{losses: 1, starts: 2}, quick},
		{2, budget{crashes: 1, starts: 3, wipes: 1}, usual},
		{3, budget{starts: 3}, usual},
		{2, budget{crashes: 1, losses: 1, starts: 3}, long},
		{3, budget{crashes: 1, starts: 4}, long},
		{3, budget{losses: 1, starts: 3}, long},
	}
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // nearly all of it lives on
	for _, size := range sizes {
		t.Run(fmt.Sprintf("%d nodes, %+v", size.nodes, size.left), func(t *testing.T) {
			switch {
			case size.takes == usual && raced:
				t.Skip("without the race detector only")
			case size.takes == long && os.Getenv("SLASHA_MODEL") != "all":
				t.Skip("takes many minutes; SLASHA_MODEL=all runs it")
			}
			start := time.Now()
			states, wrong := explore(size.nodes, size.left)
			if wrong != "" {
				t.Errorf("after %d states: %s", states, wrong)
			}
			t.Logf("%d states in %v", states, time.Since(start).Round(time.Millisecond))
		})
	}
}
