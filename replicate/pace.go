package replicate

import "time"

// burst is how many uploads may follow one another without a pause after a quiet
// time. An app often commits a few times for one request of its user; each is
// safe at once, and a steady writer gets no more than one upload per interval.
const burst = 4

// pace is a token bucket that holds burst uploads and gains one per interval. It
// is kept as a single time, as the generic cell rate algorithm has it (ITU-T
// I.371, annex A): the moment at which the bucket will be full again.
type pace struct {
	interval time.Duration
	full     time.Time
}

// took notes an upload that began at the given time.
func (p *pace) took(at time.Time) {
	if p.full.Before(at) {
		p.full = at
	}
	p.full = p.full.Add(p.interval)
}

// wait returns how long after now the next upload is due.
func (p *pace) wait(now time.Time) time.Duration {
	return max(0, p.full.Add(-(burst-1)*p.interval).Sub(now))
}
