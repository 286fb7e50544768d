package logs

import (
	"bytes"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// stuck is a log reader that does not read until it is let go.
type stuck struct {
	release chan struct{}

	mu  sync.Mutex
	got bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

func (s *stuck) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.String()
}

func TestALogReaderThatIsStuckHoldsNobodyUp(t *testing.T) {
	out := &stuck{release: make(chan struct{})}
	w := NewWriter(out)
	w.Hide([]string{"made-up-secret", ""})
	for range 2*mostWaiting + 100 { // the first batch may be as long as the queue
		if _, err := io.WriteString(w, "a line with made-up-secret in it\n"); err != nil {
			t.Fatal(err)
		}
	}
	began := time.Now()
	w.Flush(50 * time.Millisecond)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("flush took %s", took)
	}
	close(out.release)
	w.Flush(10 * time.Second)
	said := out.String()
	if !strings.Contains(said, "lines were dropped") || !strings.HasPrefix(said, "a line with *** in it\n") || strings.Contains(said, "made-up") {
		t.Errorf("%d bytes, beginning with %q", len(said), said[:min(len(said), 100)])
	}
}

func TestLibraryLogsFromWarningsUp(t *testing.T) {
	var b bytes.Buffer
	log := slog.New(slog.NewTextHandler(&b, nil))
	lib := ForLibrary(log, slog.LevelInfo)
	lib.Info("its inner life")
	lib.With("x", 1).WithGroup("g").Warn("news")
	if s := b.String(); strings.Contains(s, "inner") || !strings.Contains(s, "news") || !strings.Contains(s, "from=litestream") {
		t.Errorf("%q", s)
	}
}
