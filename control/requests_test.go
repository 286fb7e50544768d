package control

import (
	"errors"
	"testing"
)

// Each line is what happens to the requests from the start of a container on, in order.
func TestRequests(t *testing.T) {
	type step struct {
		do   string // open, place, close, take (stopped for the request alone), end (stopped otherwise)
		kind Kind
		want bool // open: the app is stopped at once; place: accepted; close: started again; take, end: there is one
	}
	const yes, no = true, false
	for name, steps := range map[string][]step{
		"nothing asked": {{"open", 0, no}, {"close", 0, no}, {"take", 0, no}},
		"a restore":     {{"open", 0, no}, {"place", Restore, yes}, {"close", 0, yes}, {"take", Restore, yes}, {"open", 0, no}},
		"stale":         {{"open", 0, no}, {"place", Stale, yes}, {"close", 0, yes}, {"take", Stale, yes}, {"open", 0, no}},
		"lost":          {{"open", 0, no}, {"place", Lost, yes}, {"close", 0, no}, {"take", Lost, yes}},
		"a sync stops nothing": {
			{"open", 0, no}, {"place", Sync, no}, {"close", 0, no}, {"take", 0, no},
		},
		"a second restore": {
			{"open", 0, no}, {"place", Restore, yes}, {"place", Restore, no}, {"take", Restore, yes},
			{"place", Restore, no}, {"open", 0, no}, {"place", Restore, yes},
		},
		"a restore that comes too early": {{"place", Restore, no}, {"open", 0, no}, {"take", 0, no}},
		"a restore that comes too late":  {{"open", 0, no}, {"close", 0, no}, {"place", Restore, no}, {"take", 0, no}},
		"a restore that meets a stop":    {{"open", 0, no}, {"place", Restore, yes}, {"end", Restore, no}, {"open", 0, no}},
		"stale, too early":               {{"place", Stale, no}, {"open", 0, no}},
		"lost before the app runs": {
			{"place", Lost, no}, {"open", 0, yes}, {"place", Restore, no}, {"close", 0, no}, {"take", Lost, yes}, {"open", 0, no},
		},
		"lost during a restore": {
			{"open", 0, no}, {"place", Restore, yes}, {"place", Lost, no}, {"close", 0, yes}, {"take", Restore, yes},
			{"open", 0, yes}, {"take", Lost, yes},
		},
		"lost between a restore and the next start": {
			{"open", 0, no}, {"place", Restore, yes}, {"take", Restore, yes}, {"place", Lost, no}, {"open", 0, yes}, {"take", Lost, yes},
		},
		"lost while the container stops": {{"open", 0, no}, {"close", 0, no}, {"place", Lost, no}, {"end", 0, no}},
		"lost together with a stop":      {{"open", 0, no}, {"place", Lost, yes}, {"end", Lost, no}},
	} {
		t.Run(name, func(t *testing.T) {
			var q Requests
			var stop <-chan struct{}
			placed := map[Kind]*Request{}
			for i, s := range steps {
				var got bool
				switch s.do {
				case "open":
					stop = q.Open()
					got = isClosed(stop)
				case "place":
					r := &Request{Kind: s.kind, PID: 100 + i}
					got = q.Place(r)
					if got {
						placed[s.kind] = r
						if !isClosed(stop) || q.PID() != r.PID {
							t.Errorf("step %d: the app is not stopped for it, or %d is spared", i, q.PID())
						}
					}
				case "close":
					got = q.Close()
				case "take", "end":
					r := q.Take(s.do == "take")
					got = r != nil
					if got && r.Kind != s.kind {
						t.Errorf("step %d: taken is one of kind %d", i, r.Kind)
					}
					if q.PID() != 0 {
						t.Errorf("step %d: %d is spared afterwards", i, q.PID())
					}
					if s.do == "end" && placed[s.kind] != nil {
						_, err := placed[s.kind].wait()
						var refused *Refusal
						if !errors.As(err, &refused) || refused.Why != "the container is stopping; nothing was restored" {
							t.Errorf("step %d: it is answered with %v", i, err)
						}
					}
				}
				if got != s.want {
					t.Errorf("step %d, %s of kind %d: %v", i, s.do, s.kind, got)
				}
			}
		})
	}
}

func isClosed(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	default:
		return false
	}
}
