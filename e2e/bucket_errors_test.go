package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// refusal is an error of an S3 service, for the requests that it is about.
type refusal struct {
	method string // of the requests; all when empty
	status int
	code   string
	off    time.Duration // how far the service's clock is from ours
}

// gateway stands in front of a real server, and refuses what a test asks for.
type gateway struct {
	URL     string
	refusal atomic.Pointer[refusal]
}

func startGateway(t *testing.T, s3 *testbed.S3) *gateway {
	t.Helper()
	target, err := url.Parse(s3.URL())
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{}
	through := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		r.Out.Host = r.In.Host // which the signature covers
	}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f := g.refusal.Load()
		if f == nil || (f.method != "" && f.method != r.Method) {
			through.ServeHTTP(w, r)
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.Header().Set("Date", time.Now().Add(f.off).UTC().Format(http.TimeFormat))
		w.WriteHeader(f.status)
		// Services repeat the key and more; none of it is for people.
		_, _ = fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no, %s</Message><AWSAccessKeyId>%s</AWSAccessKeyId></Error>",
			f.code, testbed.UserKey, testbed.UserKey)
	}))
	t.Cleanup(srv.Close)
	g.URL = srv.URL
	return g
}

// operations returns how many operations on the replica had an outcome, by the
// metrics page.
func operations(t *testing.T, c *testbed.Container, outcome string) (n int) {
	t.Helper()
	for line := range strings.Lines(c.Metrics()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		if strings.HasPrefix(name, "slasha_init_requests_total{") && strings.Contains(name, `outcome="`+outcome+`"`) {
			some, err := strconv.Atoi(value)
			if err != nil {
				t.Fatal(err)
			}
			n += some
		}
	}
	return n
}

func TestErrorsOfTheBucketWhileTheAppRuns(t *testing.T) {
	t.Parallel()
	s3 := testbed.StartS3(t)
	for name, f := range map[string]struct {
		refusal
		class, want string
	}{
		"secret changed": {refusal{"", 403, "SignatureDoesNotMatch", 0}, "secret",
			`bucket "test-bucket" refused the signature: the secret access key is wrong (SignatureDoesNotMatch)`},
		"may not write": {refusal{"PUT", 403, "AccessDenied", 0}, "denied",
			`bucket "test-bucket" denied access: the key needs s3:PutObject (AccessDenied)`},
		"throttled": {refusal{"", 503, "SlowDown", 0}, "throttled",
			`bucket "test-bucket" asks for fewer requests (SlowDown)`},
		"disks full": {refusal{"PUT", 507, "XMinioStorageFull", 0}, "quota",
			`bucket "test-bucket" is full: the disks of HOST have no room left (XMinioStorageFull)`},
		"token expired": {refusal{"", 400, "ExpiredToken", 0}, "expired",
			`bucket "test-bucket": the temporary credentials have expired (ExpiredToken)`},
		"clock wrong": {refusal{"", 403, "RequestTimeTooSkewed", -2 * time.Hour}, "clock",
			`bucket "test-bucket" refused the request's time: this machine's clock is 2h0m ahead of the service's (RequestTimeTooSkewed)`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g, vol := startGateway(t, s3), newVolume(t)
			db := vol.db(t)
			settings := append(s3.Settings(g.URL, db), "SLASHA_PATH_PREFIX=apps/"+strings.ReplaceAll(name, " ", "-"))
			c := testbed.StartContainer(t, settings, worker(t, db, "--every", "50ms")...)
			c.WaitAcked(3, 20*time.Second)
			c.WaitHealth(20*time.Second, func(s healthz.Status) error {
				if s.LastSyncedAt == nil {
					return fmt.Errorf("nothing uploaded yet")
				}
				return healthy(s)
			})

			g.refusal.Store(&f.refusal)
			began := time.Now()
			want := strings.ReplaceAll(f.want, "HOST", strings.TrimPrefix(g.URL, "http://"))
			s := c.WaitHealth(45*time.Second, func(s healthz.Status) error {
				if s.Healthy || text(s.HealthError) != want {
					return fmt.Errorf("healthy is %v, health_error is %q, want %q", s.Healthy, text(s.HealthError), want)
				}
				return nil
			})
			t.Logf("reported after %s: %s", time.Since(began).Round(time.Millisecond), text(s.HealthError))
			if operations(t, c, f.class) == 0 {
				t.Errorf("the metrics count no operation of class %s", f.class)
			}
			c.WaitAcked(len(c.Acked())+10, 10*time.Second) // the app goes on meanwhile

			g.refusal.Store(nil)
			healed := time.Now()
			c.WaitHealth(45*time.Second, func(s healthz.Status) error {
				if s.LastSyncedAt == nil || !time.Time(*s.LastSyncedAt).After(healed) {
					return fmt.Errorf("nothing uploaded since: %s", text(s.HealthError))
				}
				return healthy(s)
			})
			t.Logf("healthy again after %s", time.Since(healed).Round(time.Millisecond))
			c.Signal(syscall.SIGTERM)
			if code := c.Wait(12 * time.Second); code != 0 {
				t.Errorf("exit %d", code)
			}
			noSecret(t, c.Stderr.String(), text(s.HealthError))
		})
	}
}
