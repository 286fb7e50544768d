package supervisor

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Prefix writes the lines of several processes with the name of the process
// before each, whole lines at a time.
type Prefix struct {
	Stdout, Stderr io.Writer

	width   int        // names are filled up to it
	mu      sync.Mutex // one line at a time, on both
	readers sync.WaitGroup
}

const (
	// longestLine is where a line that does not end is broken.
	longestLine = 64 << 10
	// lastLines is how long a finish waits for somebody to read the last lines.
	lastLines = 500 * time.Millisecond
)

// output is what a process writes to.
type output struct{ stdout, stderr *os.File }

// close closes our copies, when the child has its own.
func (o *output) close() {
	_ = o.stdout.Close()
	_ = o.stderr.Close()
}

// open makes the pipes for a process, and reads them until nobody has them open
// for writing any more.
func (p *Prefix) open(name string) (*output, error) {
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("a pipe for the output of %s: %w", name, err)
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("a pipe for the output of %s: %w", name, err), outR.Close(), outW.Close())
	}
	label := fmt.Appendf(nil, "%-*s | ", p.width, name)
	p.readers.Go(func() { p.copy(p.Stdout, outR, label) })
	p.readers.Go(func() { p.copy(p.Stderr, errR, label) })
	return &output{outW, errW}, nil
}

func (p *Prefix) copy(to io.Writer, from *os.File, label []byte) {
	defer func() { _ = from.Close() }()
	lines := bufio.NewReaderSize(from, longestLine)
	for {
		line, err := lines.ReadSlice('\n')
		if len(line) > 0 {
			whole := append(bytes.Clone(label), line...)
			if line[len(line)-1] != '\n' {
				whole = append(whole, '\n')
			}
			p.mu.Lock()
			_, _ = to.Write(whole) // when the reader is gone, the app must go on all the same
			p.mu.Unlock()
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// finish waits until the last lines are out, if somebody reads them.
func (p *Prefix) finish() {
	if p == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		p.readers.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(lastLines):
	}
}
