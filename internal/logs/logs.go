// Package logs is our own log, on stderr: where lines go, who waits for whom, and what
// never gets into one.
package logs

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Config says how the log is written.
type Config struct {
	Format string // "text" or "json"
	Level  slog.Level
}

// New returns our own log, on w.
func New(w io.Writer, cfg Config) *slog.Logger {
	opts := &slog.HandlerOptions{Level: cfg.Level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// librarian passes on what Litestream logs from warnings up, and all of it when
// we debug: its lines at level info are about its own inner workings.
type librarian struct {
	slog.Handler
	least slog.Level
}

// ForLibrary makes a logger for Litestream. Litestream takes slog's default at
// construction, so it must be set before anything of it is made.
func ForLibrary(l *slog.Logger, level slog.Level) *slog.Logger {
	least := slog.LevelWarn
	if level <= slog.LevelDebug {
		least = slog.LevelDebug
	}
	return slog.New(librarian{l.Handler(), least}).With("from", "litestream")
}

func (h librarian) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= h.least && h.Handler.Enabled(ctx, level)
}

func (h librarian) WithAttrs(attrs []slog.Attr) slog.Handler {
	return librarian{h.Handler.WithAttrs(attrs), h.least}
}

func (h librarian) WithGroup(name string) slog.Handler {
	return librarian{h.Handler.WithGroup(name), h.least}
}

// Redact puts stars in the place of secrets. It is the last line of defence:
// nothing that is given to it should hold one.
func Redact(s string, secrets []string) string {
	for _, secret := range secrets {
		if len(secret) >= 4 { // less would black out ordinary words
			s = strings.ReplaceAll(s, secret, "***")
		}
	}
	return s
}

// Writer never blocks for long: lines wait in memory for a goroutine to write them, and
// are dropped when too many wait. A log reader that is stuck or gone must not keep PID 1
// from its work.
type Writer struct {
	out io.Writer

	mu      sync.Mutex
	secrets []string
	queue   [][]byte
	dropped int
	more    chan struct{} // has room for one
	idle    chan struct{} // closed while nothing waits
	busy    bool
}

// mostWaiting is how many lines may wait.
const mostWaiting = 4096

// NewWriter returns a Writer to out. Flush it before the process ends.
func NewWriter(out io.Writer) *Writer {
	w := &Writer{out: out, more: make(chan struct{}, 1), idle: make(chan struct{})}
	close(w.idle)
	go w.loop()
	return w
}

// Hide keeps secrets out of everything that is written from now on.
func (w *Writer) Hide(secrets []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.secrets = secrets
}

// Write queues p. It never fails.
func (w *Writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) >= mostWaiting {
		w.dropped++
		return len(p), nil
	}
	line := []byte(Redact(string(p), w.secrets))
	w.queue = append(w.queue, line)
	if !w.busy {
		w.busy = true
		w.idle = make(chan struct{})
	}
	select {
	case w.more <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (w *Writer) loop() {
	for range w.more {
		for {
			w.mu.Lock()
			if len(w.queue) == 0 {
				if w.busy {
					w.busy = false
					close(w.idle)
				}
				w.mu.Unlock()
				break
			}
			batch := bytes.Join(w.queue, nil)
			w.queue = nil
			if w.dropped > 0 {
				batch = append(batch, "slasha-init: log lines were dropped: nobody read them\n"...)
				w.dropped = 0
			}
			w.mu.Unlock()
			_, _ = w.out.Write(batch) // when the reader is gone, there is nobody to report that to
		}
	}
}

// Flush waits until all is written, or for at most the given time.
func (w *Writer) Flush(atMost time.Duration) {
	w.mu.Lock()
	idle := w.idle
	w.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(atMost):
	}
}
