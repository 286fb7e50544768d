package testbed

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3" // reads what was restored

	"github.com/slashacom/slasha-init/healthz"
)

func splitAddr(addr string) (host, port string, err error) { return net.SplitHostPort(addr) }

// Container is slasha-init at work with an app.
type Container struct {
	*Process
	HealthAddr string
}

var healthLine = regexp.MustCompile(`msg="health page" addr=([0-9.:]+)`)

// StartContainer runs slasha-init with the settings and the command, and waits
// until its health page answers.
func StartContainer(t testing.TB, settings []string, command ...string) *Container {
	t.Helper()
	return Adopt(t, Start(t, settings, SlashaInit(t), append([]string{"--"}, command...)...))
}

// Adopt waits for the health page of a slasha-init that was started by hand.
func Adopt(t testing.TB, p *Process) *Container {
	t.Helper()
	addr := WaitOutput(p, p.Stderr, "health page", 20*time.Second, func(s string) (string, bool) {
		m := healthLine.FindStringSubmatch(s)
		if m == nil {
			return "", false
		}
		return m[1], true
	})
	return &Container{Process: p, HealthAddr: addr}
}

// Health asks the health page.
func (c *Container) Health() (healthz.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return healthz.Fetch(ctx, c.HealthAddr)
}

// WaitHealth asks the health page until ok accepts the answer, and returns that.
func (c *Container) WaitHealth(atMost time.Duration, ok func(healthz.Status) error) healthz.Status {
	c.t.Helper()
	var last healthz.Status
	Eventually(c.t, atMost, func() error {
		select {
		case <-c.done:
			c.t.Fatalf("slasha-init ended; stderr:\n%s", c.Stderr)
		default:
		}
		s, err := c.Health()
		if err != nil {
			return err
		}
		last = s
		return ok(s)
	})
	return last
}

// Get asks a page and returns its status code and headers.
func (c *Container) Get(method, path string) (int, http.Header) {
	c.t.Helper()
	code, head, _ := c.page(method, path)
	return code, head
}

// Metrics returns the metrics page.
func (c *Container) Metrics() string {
	c.t.Helper()
	_, _, body := c.page(http.MethodGet, "/metrics")
	return body
}

func (c *Container) page(method, path string) (code int, head http.Header, body string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+c.HealthAddr+path, http.NoBody)
	if err != nil {
		c.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		c.t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
}

// Acked returns the ids of the entries whose commit the app saw return.
func (c *Container) Acked() []int64 {
	var ids []int64
	for _, a := range c.Acks() {
		ids = append(ids, a.ID)
	}
	return ids
}

// Ack is a commit that returned.
type Ack struct {
	ID int64
	At time.Time // when it had returned; zero without the app's --stamp
}

// Acks returns the commits that the app saw return.
func (c *Container) Acks() []Ack {
	var acks []Ack
	for line := range strings.Lines(c.Stdout.String()) {
		if !strings.HasSuffix(line, "\n") {
			break // still being written
		}
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "ack" {
			continue
		}
		id, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			continue
		}
		a := Ack{ID: id}
		if len(f) > 2 {
			a.At, _ = time.Parse(time.RFC3339Nano, f[2])
		}
		acks = append(acks, a)
	}
	return acks
}

// WaitAcked waits until the app has seen so many commits return.
func (c *Container) WaitAcked(n int, atMost time.Duration) {
	c.t.Helper()
	WaitOutput(c.Process, c.Stdout, strconv.Itoa(n)+" commits", atMost, func(s string) (struct{}, bool) {
		return struct{}{}, strings.Count(s, "ack ") >= n && strings.HasSuffix(s, "\n")
	})
}

// Entry is a row of the sample app.
type Entry struct {
	ID int64
	At time.Time
}

// Entries reads all rows of a guestbook that nothing has open.
func Entries(t testing.TB, path string) []Entry {
	t.Helper()
	db, err := sql.Open("sqlite3", "file:"+path+"?mode=rw")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	var check string
	if err := db.QueryRow("PRAGMA integrity_check").Scan(&check); err != nil || check != "ok" {
		t.Fatalf("integrity_check of %s: %q, %v", path, check, err)
	}
	rows, err := db.Query("SELECT id, at FROM entries ORDER BY id")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	var entries []Entry
	for rows.Next() {
		var e Entry
		var at string
		if err := rows.Scan(&e.ID, &at); err != nil {
			t.Fatal(err)
		}
		if e.At, err = time.Parse(time.RFC3339Nano, at); err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return entries
}
