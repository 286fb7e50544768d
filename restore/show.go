package restore

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slashacom/slasha-init/internal/text"
)

// Display shows a restore to a person: as a bar on a terminal, else as a log line now
// and then. It is for one goroutine at a time, as OnProgress is.
type Display struct {
	log   *slog.Logger
	bar   io.Writer // nil without a terminal
	last  time.Time
	drawn bool
}

// logEvery is how far apart the log lines of a long restore are.
const logEvery = 5 * time.Second

// NewDisplay returns a display on stderr if that is a terminal, else on the log.
func NewDisplay(log *slog.Logger, stderr *os.File) *Display {
	d := &Display{log: log, last: time.Now()}
	if _, err := unix.IoctlGetTermios(int(stderr.Fd()), unix.TCGETS); err == nil {
		d.bar = stderr
	}
	return d
}

// OnTerminal reports whether the display is a bar. If it is not, Show writes to the log.
func (d *Display) OnTerminal() bool { return d.bar != nil }

// Show shows how far the restore is.
func (d *Display) Show(p Progress) {
	if d.bar != nil {
		d.drawn = true
		fmt.Fprintf(d.bar, "\r\x1b[Krestoring %s", drawBar(p))
		return
	}
	if time.Since(d.last) >= logEvery {
		d.last = time.Now()
		args := []any{"done", text.Bytes(p.BytesDone), "total", text.Bytes(p.BytesTotal),
			"rate", text.Bytes(p.Rate()) + "/s", "took", p.Took.Round(time.Second)}
		if left, known := p.Left(); known {
			args = append(args, "left", left)
		}
		d.log.Info("restoring", args...)
	}
}

// Done ends the line of the bar.
func (d *Display) Done() {
	if d.drawn {
		fmt.Fprintln(d.bar)
	}
}

func drawBar(p Progress) string {
	const width = 30
	share := 0.0
	if p.BytesTotal > 0 {
		share = min(1, float64(p.BytesDone)/float64(p.BytesTotal))
	}
	full := int(share * width)
	bar := fmt.Sprintf("[%s%s] %3.0f%%  %s of %s  %s/s", strings.Repeat("#", full), strings.Repeat(".", width-full),
		share*100, text.Bytes(p.BytesDone), text.Bytes(p.BytesTotal), text.Bytes(p.Rate()))
	if left, known := p.Left(); known {
		bar += fmt.Sprintf("  %s left", left)
	}
	return bar
}
