package lease

import (
	"slices"
	"time"
)

// The protocol, without a network and without a clock: what to do next, and what
// comes of an answer. Lease carries it out, and the model (model_test.go) walks
// through everything that can happen to three of them.
//
// All times are on the node's own clock, which never stops (see clock). No time of
// one node is ever compared with that of another; what they agree on is how long a
// second is, to within a sixth.

// at is a moment on a node's clock.
type at = time.Duration

// What parts of the TTL there are. A renewal has two more tries before the fence
// closes, and what was under way when it closed has the rest of the TTL to arrive.
const (
	renewals = 3 // in a TTL
	margins  = 6
)

// longAgo is an age, by the clock of the one who keeps the record, at which it is
// abandoned beyond doubt, so that nobody waits for a host that died last week. S3
// services refuse a request whose time is 15 minutes off, so two machines of one
// that both talk to the same client are at most twice that apart.
const longAgo = 30 * time.Minute

type phase int

const (
	looking phase = iota // must read the record before anything else
	waiting              // somebody else has it; to be read again
	writing              // the record is to be written
	holding              // ours; to be renewed
	lost                 // was ours and is somebody else's
)

type moveKind int

const (
	rest moveKind = iota // until the move's time
	read
	write
	stop
)

// move is what the protocol wants done.
type move struct {
	kind  moveKind
	until at // of a rest
	rec   record
	ifTag string // "" when there must be no record yet
}

// found is a record as it was read.
type found struct {
	rec record
	tag string
	age time.Duration
}

// outcome is what came of a write. A failure leaves open whether it was written.
type outcome int

const (
	written outcome = iota
	conflict
	failed
)

// protocol is one node's side. It is a plain value.
type protocol struct {
	me     string
	mine   []string      // owners of this volume's earlier starts
	ttl    time.Duration // of our own lease
	margin time.Duration // so much before the end of the TTL the fence closes
	poll   time.Duration // how often somebody else's is looked at
	retry  time.Duration // pause after a failure
	epochs uint64        // the highest epoch seen

	phase phase
	sent  at     // when the request that is under way was
	again at     // when to read, or write, next
	owned bool   // a write of ours was acknowledged
	until at     // the fence is open before this
	rec   record // ours, as it is to be written or was written last
	tag   string // what is to be replaced

	seen  found // of somebody else
	since at    // when seen was first read
}

// next returns what to do, and notes that it is being done.
func (p *protocol) next(now at) move {
	switch {
	case p.phase == lost:
		return move{kind: stop}
	case now < p.again:
		return move{kind: rest, until: p.again}
	case p.phase == looking, p.phase == waiting:
		p.sent = now
		return move{kind: read}
	case p.phase == holding:
		p.phase = writing
		p.rec.Renewal++
	}
	p.sent = now
	return move{kind: write, rec: p.rec, ifTag: p.tag}
}

// open reports whether something may be written into the replica.
func (p *protocol) open(now at) bool { return p.owned && p.phase != lost && now < p.until }

// wrote takes the answer to a write.
func (p *protocol) wrote(now at, how outcome, tag string) {
	switch how {
	case written:
		p.phase, p.tag, p.owned = holding, tag, true
		// Counted from before it was sent: an instance that reads it begins to wait later.
		p.until = p.sent + p.ttl - p.margin
		p.again = p.sent + p.ttl/renewals
	case conflict:
		p.phase, p.again = looking, now
	case failed:
		p.again = now + p.retry
		if !p.owned {
			p.phase = looking
		}
	}
}

// saw takes the answer to a read; none is nil.
func (p *protocol) saw(now at, f *found) {
	if f == nil {
		p.take(now, "")
		return
	}
	p.epochs = max(p.epochs, f.rec.Epoch)
	switch {
	case f.rec.Owner == p.me:
		// One of our own writes got there, and its answer did not get back. It says
		// nothing about now; the next one will.
		p.phase, p.again, p.tag = writing, now, f.tag
		p.rec.Epoch = max(p.rec.Epoch, f.rec.Epoch)
		p.rec.Renewal = max(p.rec.Renewal, f.rec.Renewal) + 1
	case p.owned:
		p.phase, p.seen = lost, *f
	case p.isFree(*f):
		p.take(now, f.tag)
	default:
		if p.phase != waiting || f.tag != p.seen.tag {
			p.since = now
		}
		p.phase, p.again, p.seen = waiting, now+p.poll, *f
	}
}

// failedToRead takes a read that had no answer.
func (p *protocol) failedToRead(now at) { p.again = now + p.retry }

// isFree reports whether somebody else's lease may be taken: it was given back, or
// it was this volume's own, or its holder has not renewed it for so long that its
// fence is closed.
func (p *protocol) isFree(f found) bool {
	ttl := f.rec.ttl(p.ttl)
	return f.rec.Released || slices.Contains(p.mine, f.rec.Owner) ||
		p.phase == waiting && f.tag == p.seen.tag && p.sent-p.since >= ttl ||
		f.age >= longAgo+ttl
}

// take sets out to write ourselves into the place of what has the tag.
func (p *protocol) take(now at, tag string) {
	if !p.owned {
		p.epochs++
		p.rec.Epoch = p.epochs
	}
	p.rec.Renewal++
	p.phase, p.again, p.tag = writing, now, tag
}
