package exit

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
)

func TestCode(t *testing.T) {
	plain := errors.New("no reason given")
	for name, c := range map[string]struct {
		err  error
		want int
	}{
		"success":            {nil, 0},
		"an error without":   {plain, No},
		"one with":           {With(Held, plain), Held},
		"wrapped":            {fmt.Errorf("start: %w", With(Restore, plain)), Restore},
		"the outer one wins": {With(Config, With(Held, plain)), Config},
		"nothing to give to": {With(Config, nil), 0},
		"a signal":           {&Stopped{syscall.SIGTERM}, 143},
	} {
		if got := Code(c.err); got != c.want {
			t.Errorf("%s: %d, not %d", name, got, c.want)
		}
	}
	if err := With(Held, plain); !errors.Is(err, plain) || err.Error() != plain.Error() {
		t.Errorf("the error is another one: %v", err)
	}
}
