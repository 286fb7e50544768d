package replicate

import (
	"testing"
	"time"
)

// uploads returns when the uploads of a writer begin that always has something to
// upload, and needs the given time for each.
func uploads(p *pace, from time.Time, each, lasting time.Duration) (began []time.Duration) {
	for now := from; now.Sub(from) < lasting; now = now.Add(each) {
		now = now.Add(p.wait(now))
		p.took(now)
		began = append(began, now.Sub(from))
	}
	return began
}

func TestPace(t *testing.T) {
	const interval = 500 * time.Millisecond
	start := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name  string
		each  time.Duration // an upload takes
		first []time.Duration
		most  int // uploads in a minute
	}{
		{"a fast bucket", 30 * time.Millisecond, []time.Duration{0, 30e6, 60e6, 90e6, 500e6, 1000e6}, 120 + burst},
		{"a bucket as fast as the interval", interval, []time.Duration{0, 500e6, 1000e6, 1500e6}, 120 + burst},
		{"a slow bucket", 3 * time.Second, []time.Duration{0, 3e9, 6e9}, 20},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &pace{interval: interval}
			got := uploads(p, start, test.each, time.Minute)
			for i, want := range test.first {
				if got[i] != want {
					t.Errorf("upload %d begins after %v, want %v", i, got[i], want)
				}
			}
			if len(got) > test.most {
				t.Errorf("%d uploads in a minute, want at most %d", len(got), test.most)
			}
		})
	}
}

// The bucket fills up in a quiet time, and never beyond its size.
func TestPaceAfterAQuietTime(t *testing.T) {
	const interval = 500 * time.Millisecond
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	p := &pace{interval: interval}
	uploads(p, now, time.Millisecond, 10*time.Second)
	for _, test := range []struct {
		quiet time.Duration
		want  int // uploads at once
	}{{interval, 1}, {2 * interval, 2}, {time.Hour, burst}} {
		now = p.full.Add(-(burst - 1) * interval) // one upload is due
		p.took(now)
		now = now.Add(test.quiet)
		n := 0
		for ; p.wait(now) == 0; n++ {
			p.took(now)
		}
		if n != test.want {
			t.Errorf("%d uploads at once after %v, want %d", n, test.quiet, test.want)
		}
	}
}
