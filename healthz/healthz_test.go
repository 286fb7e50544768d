package healthz

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

var start = time.Date(2026, 11, 23, 5, 32, 19, 123456789, time.UTC)

func enabled() *Health {
	h := New(Config{Enabled: true, MaxLag: 10 * time.Second, Version: "v0"})
	h.Database("/data/app.db", "s3://b/p")
	h.now = func() time.Time { return start }
	return h
}

func TestPhases(t *testing.T) {
	h := enabled()
	for _, p := range []Phase{Starting, Restoring, Starting, Running, Running, Stopping} {
		if err := h.Enter(p); err != nil {
			t.Error(err)
		}
	}
	if err := h.Enter(Running); err == nil {
		t.Error("ran again after the stop")
	}
	if err := h.Fail("the disk burns"); err != nil {
		t.Error(err)
	}
	for _, p := range []Phase{Starting, Waiting, Restoring, Running, Stopping} {
		if err := h.Enter(p); err == nil {
			t.Errorf("%s after failed", p)
		}
	}
	if s := h.Status(); s.Healthy || *s.HealthError != "the disk burns" {
		t.Errorf("%+v", s)
	}
}

func TestHealthyMeans(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(*Health)
		want string // part of health_error; "" is healthy
	}{
		"nothing heard yet":     {func(*Health) {}, "has not answered yet"},
		"an answer":             {func(h *Health) { h.Checked(start) }, ""},
		"a failure":             {func(h *Health) { h.Checked(start); h.Problem("no such bucket") }, "no such bucket"},
		"over with the failure": {func(h *Health) { h.Checked(start); h.Problem("x"); h.Problem("") }, ""},
		"a list heals nothing":  {func(h *Health) { h.Problem("put refused"); h.Checked(start) }, "put refused"},
		"an upload heals":       {func(h *Health) { h.Problem("x"); h.Checked(start); h.Synced(start, "1") }, ""},
		"pending, but not long": {func(h *Health) { h.Checked(start); h.Pending(start.Add(-9 * time.Second)) }, ""},
		"pending too long":      {func(h *Health) { h.Checked(start); h.Pending(start.Add(-11 * time.Second)) }, "for 11s, longer than --max-lag 10s"},
		"no longer pending":     {func(h *Health) { h.Checked(start); h.Pending(start.Add(-time.Hour)); h.Pending(time.Time{}) }, ""},
		"restoring":             {func(h *Health) { h.Checked(start); _ = h.Enter(Restoring) }, "restoring"},
		"waiting":               {func(h *Health) { h.Checked(start); _ = h.Enter(Waiting) }, "waiting"},
	} {
		h := enabled()
		c.do(h)
		s := h.Status()
		if (c.want == "") != s.Healthy || s.Healthy != (s.HealthError == nil) || (s.HealthError != nil && !strings.Contains(*s.HealthError, c.want)) {
			t.Errorf("%s: %+v", name, s)
		}
	}
	off := New(Config{})
	off.Problem("whatever")
	if s := off.Status(); !s.Healthy || s.Enabled {
		t.Errorf("without backups: %+v", s)
	}
}

func TestLastSyncedAtOnlyMovesForward(t *testing.T) {
	h := enabled()
	h.Synced(start, "0000000000000002")
	h.Synced(start.Add(-time.Minute), "0000000000000002")
	h.Checked(start.Add(time.Minute))
	s := h.Status()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	// Rounded down: what was committed after it is not promised.
	if !strings.Contains(string(b), `"last_synced_at":"2026-11-23T05:32:19.123456Z"`) {
		t.Errorf("%s", b)
	}
}

// The contract's keys, to the letter.
func TestJSON(t *testing.T) {
	h := enabled()
	b, err := json.Marshal(h.Status())
	if err != nil {
		t.Fatal(err)
	}
	want := `{"phase":"starting","enabled":true,"healthy":false,"health_error":"the replica has not answered yet",` +
		`"last_synced_at":null,"last_checked_at":null,"pending_since":null,"txid":null,"replica_txid":null,` +
		`"db_path":"/data/app.db","replica":"s3://b/p",` +
		`"restore":{"state":"none","reason":null,"bytes_done":0,"bytes_total":0,"bytes_per_second":0,"seconds_left":null,"txid":null,"took_seconds":0,"set_aside":null},` +
		`"lease":{"state":"off","epoch":0},"last_verified_at":null,"processes":[],"version":"v0"}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
}

func TestPageEscapes(t *testing.T) {
	h := New(Config{Enabled: true, Version: "<v>"})
	h.Database(`/data/<script>alert(1)</script>.db`, `s3://b/"><img>`)
	h.Problem(`<b>bold</b>`)
	rec := httptest.NewRecorder()
	h.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", http.NoBody))
	body := rec.Body.String()
	for _, bad := range []string{"<script>", "<img>", "<b>bold", "<v>"} {
		if strings.Contains(body, bad) {
			t.Errorf("the page holds %s", bad)
		}
	}
	if rec.Code != 200 || !strings.Contains(body, "&lt;b&gt;bold") {
		t.Errorf("%d %s", rec.Code, body)
	}
}

func TestFetch(t *testing.T) {
	h := enabled()
	s, err := Listen(t.Context(), "127.0.0.1:0", h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), s.Addr(), h, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("two listen at one address")
	}
	// HTTP_PROXY is the app's, not for loopback.
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	h.Process(Process{Type: "web", PID: 17, StartedAt: Time(start)}, false)
	got, err := Fetch(t.Context(), s.Addr())
	if err != nil || got.Healthy || got.DBPath != "/data/app.db" || len(got.Processes) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Fetch(t.Context(), s.Addr()); err == nil {
		t.Error("a closed page answers")
	}
	if _, err := Fetch(t.Context(), "nonsense"); err == nil {
		t.Error("nonsense is an address")
	}
}

// Each metric that the dashboard asks for is served.
func TestMetricsOfTheDashboard(t *testing.T) {
	h := enabled()
	at := start
	h.Pending(at.Add(-70 * time.Millisecond))
	h.Synced(at, "1")
	h.Requested("write", 30*time.Millisecond, "ok")
	h.Requested("write", time.Second, "access key")
	rec := httptest.NewRecorder()
	h.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	served := rec.Body.String()
	for _, want := range []string{
		`slasha_init_requests_total{op="write",outcome="ok"} 1`,
		`slasha_init_requests_total{op="write",outcome="access key"} 1`,
		`slasha_init_request_seconds_bucket{op="write",le="0.05"} 1`,
		`slasha_init_lag_seconds_count 1`,
		`slasha_init_lag_seconds_bucket{le="0.05"} 0`,
	} {
		if !strings.Contains(served, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	dashboard, err := os.ReadFile("../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`slasha_init_[a-z_]+`).FindAllString(string(dashboard), -1)
	if len(names) < 10 || !json.Valid(dashboard) {
		t.Errorf("the dashboard names %d metrics", len(names))
	}
	for _, name := range names {
		if !strings.Contains(served, "\n"+name+"{") && !strings.Contains(served, "\n"+name+" ") {
			t.Errorf("the dashboard asks for %s, which is not served", name)
		}
	}
}

// A lease may have ended while the process stood still: each answer asks anew.
func TestTheLeaseIsAskedForEachAnswer(t *testing.T) {
	h := enabled()
	if s := h.Status().Lease; s != (Lease{State: "off"}) {
		t.Errorf("at first it is %v", s)
	}
	is := Lease{State: "held", Epoch: 3}
	h.LeaseBy(func() Lease { return is })
	for _, state := range []string{"held", "lapsed"} {
		is.State = state
		if s := h.Status().Lease; s != is {
			t.Errorf("%v, not %v", s, is)
		}
	}
	h.Lease(Lease{State: "following", Holder: "the other"})
	if s := h.Status().Lease; s != (Lease{State: "following", Holder: "the other"}) {
		t.Errorf("%v of a follower", s)
	}
}
