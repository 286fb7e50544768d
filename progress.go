package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/restore"
)

// progress shows a restore to a person: as a bar where stderr is a terminal, as
// a log line now and then where it is not.
type progress struct {
	log   *slog.Logger
	bar   io.Writer // nil without a terminal
	last  time.Time
	drawn bool
}

// logEvery is how far apart the log lines of a long restore are.
const logEvery = 5 * time.Second

func newProgress(log *slog.Logger, stderr *os.File) *progress {
	p := &progress{log: log, last: time.Now()}
	if _, err := unix.IoctlGetTermios(int(stderr.Fd()), unix.TCGETS); err == nil {
		p.bar = stderr
	}
	return p
}

func (p *progress) show(r restore.Progress) {
	if p.bar != nil {
		p.drawn = true
		fmt.Fprintf(p.bar, "\r\x1b[Krestoring %s", drawBar(r))
		return
	}
	if time.Since(p.last) >= logEvery {
		p.last = time.Now()
		args := []any{"done", healthz.Bytes(r.BytesDone), "total", healthz.Bytes(r.BytesTotal),
			"rate", healthz.Bytes(r.Rate()) + "/s", "took", r.Took.Round(time.Second)}
		if left, known := r.Left(); known {
			args = append(args, "left", left)
		}
		p.log.Info("restoring", args...)
	}
}

func (p *progress) done() {
	if p.drawn {
		fmt.Fprintln(p.bar)
	}
}

func drawBar(r restore.Progress) string {
	const width = 30
	share := 0.0
	if r.BytesTotal > 0 {
		share = min(1, float64(r.BytesDone)/float64(r.BytesTotal))
	}
	full := int(share * width)
	bar := fmt.Sprintf("[%s%s] %3.0f%%  %s of %s  %s/s", strings.Repeat("#", full), strings.Repeat(".", width-full),
		share*100, healthz.Bytes(r.BytesDone), healthz.Bytes(r.BytesTotal), healthz.Bytes(r.Rate()))
	if left, known := r.Left(); known {
		bar += fmt.Sprintf("  %s left", left)
	}
	return bar
}

func restoreStatus(state healthz.RestoreState, p restore.Progress) healthz.Restore {
	reason := string(p.Reason)
	s := healthz.Restore{
		State: state, Reason: &reason,
		BytesDone: p.BytesDone, BytesTotal: p.BytesTotal, BytesPerSecond: p.Rate(),
		TookSeconds: float64(p.Took.Milliseconds()) / 1000,
	}
	if left, known := p.Left(); known && state == healthz.RestoreRunning {
		seconds := int64(left / time.Second)
		s.SecondsLeft = &seconds
	}
	if p.TXID != 0 {
		txid := p.TXID.String()
		s.TXID = &txid
	}
	return s
}
