package wait

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		for name, c := range map[string]struct {
			ctx  context.Context
			d    time.Duration
			took time.Duration
			want bool
		}{
			"a while":                       {t.Context(), time.Minute, time.Minute, true},
			"no time":                       {t.Context(), 0, 0, true},
			"less than no time":             {t.Context(), -time.Second, 0, true},
			"a context that has ended":      {ended, time.Minute, 0, false},
			"no time, and it has ended too": {ended, 0, 0, false},
		} {
			began := time.Now()
			if got, took := For(c.ctx, c.d), time.Since(began); got != c.want || took != c.took {
				t.Errorf("%s: %v after %v, want %v after %v", name, got, took, c.want, c.took)
			}
		}
	})
}

func TestForEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if got, took := For(ctx, time.Minute), time.Since(began); got || took != time.Second {
			t.Errorf("%v after %v", got, took)
		}
	})
}

func TestOr(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wake := make(chan struct{}, 1)
		took := func(d time.Duration) time.Duration {
			began := time.Now()
			Or(t.Context(), d, wake)
			return time.Since(began)
		}
		wake <- struct{}{}
		if d := took(0); d != 0 || len(wake) != 1 {
			t.Errorf("no time: it took %v and what woke it", d)
		}
		if d := took(time.Minute); d != 0 || len(wake) != 0 {
			t.Errorf("woken: it took %v", d)
		}
		if d := took(time.Minute); d != time.Minute {
			t.Errorf("not woken: it took %v", d)
		}
	})
}
