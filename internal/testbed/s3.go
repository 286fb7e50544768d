package testbed

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Credentials that are made up, and look it.
const (
	RootKey    = "TESTROOTKEY0000000000"
	RootSecret = "made-up-root-secret-0000000000000000000"
	UserKey    = "TESTUSERKEY0000000000"
	UserSecret = "made-up-user-secret-1111111111111111111"
)

// S3 is a real S3 server (versitygw) with one bucket and one user.
type S3 struct {
	Addr   string
	Bucket string
	Region string
	Dir    string // of the objects: a bucket is a folder in it
	CA     string // certificate file to trust, of a server that speaks TLS

	t    testing.TB
	proc *Process
	args []string
}

// StartS3 starts a server for the time of the test.
func StartS3(t testing.TB) *S3 {
	t.Helper()
	return startS3(t, "us-east-1", false)
}

// StartS3TLS starts a server that speaks TLS, with a certificate of its own.
func StartS3TLS(t testing.TB) *S3 {
	t.Helper()
	return startS3(t, "us-east-1", true)
}

// StartS3In starts a server in a region.
func StartS3In(t testing.TB, region string) *S3 {
	t.Helper()
	return startS3(t, region, false)
}

// startS3 keeps the data on the file system of the repository: it needs user
// extended attributes.
func startS3(t testing.TB, region string, secure bool) *S3 {
	t.Helper()
	base := filepath.Join(Root(), ".cache", "s3")
	if err := os.MkdirAll(base, 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(base, "t-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &S3{Addr: FreeAddr(t), Bucket: "test-bucket", Region: region, Dir: filepath.Join(dir, "data"), t: t}
	for _, d := range []string{filepath.Join(s.Dir, s.Bucket), filepath.Join(dir, "iam")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.args = []string{
		"--port", s.Addr, "--region", region, "--health", "/health", "--keep-alive", "--quiet",
		"--iam-dir", filepath.Join(dir, "iam"), "--iam-cache-disable",
	}
	if secure {
		var key string
		s.CA, key = certificate(t, dir)
		s.args = append(s.args, "--cert", s.CA, "--key", key)
	}
	s.args = append(s.args, "posix", s.Dir)
	s.Up()
	s.GiveUser()
	return s
}

// Up starts the server, at the address that it had before.
func (s *S3) Up() {
	s.t.Helper()
	s.proc = Start(s.t, []string{"ROOT_ACCESS_KEY=" + RootKey, "ROOT_SECRET_KEY=" + RootSecret},
		Tool(s.t, "versitygw"), s.args...)
	if s.CA != "" {
		waitListen(s.t, s.proc, s.Addr)
		return
	}
	waitAnswer(s.t, s.proc, s.URL()+"/health")
}

// Down ends the server: nothing listens at its address any more.
func (s *S3) Down() { s.proc.Kill() }

// URL is the server's endpoint.
func (s *S3) URL() string {
	if s.CA != "" {
		return "https://" + s.Addr
	}
	return "http://" + s.Addr
}

// RevokeUser takes the user's key away.
func (s *S3) RevokeUser() {
	s.t.Helper()
	s.admin("delete-user", "--access", UserKey)
}

// GiveUser makes the user's key, or gives it back after it was revoked.
func (s *S3) GiveUser() {
	s.t.Helper()
	s.admin("create-user", "--access", UserKey, "--secret", UserSecret, "--role", "admin")
}

func (s *S3) admin(args ...string) {
	s.t.Helper()
	MustRun(s.t, []string{"SSL_CERT_FILE=" + s.CA}, 20*time.Second, Tool(s.t, "versitygw"), append([]string{"admin",
		"--access", RootKey, "--secret", RootSecret, "--region", s.Region, "--endpoint-url", s.URL()}, args...)...)
}

// Settings returns the environment that points slasha-init at the server, as a
// platform would set it, through the given endpoint.
func (s *S3) Settings(endpoint, dbPath string) []string {
	return []string{
		"SLASHA_DB_PATH=" + dbPath,
		"SLASHA_BUCKET=" + s.Bucket,
		"SLASHA_ENDPOINT=" + endpoint,
		"SLASHA_ACCESS_KEY_ID=" + UserKey,
		"SLASHA_SECRET_ACCESS_KEY=" + UserSecret,
		"SLASHA_PATH_PREFIX=apps/guestbook",
		"SLASHA_HEALTH_ADDR=127.0.0.1:0",
	}
}

// OfficialRestore restores the replica with the official litestream command.
func (s *S3) OfficialRestore(output string) {
	s.t.Helper()
	config := filepath.Join(s.t.TempDir(), "litestream.yml")
	text := fmt.Sprintf("dbs:\n  - path: %s\n    replica:\n      type: s3\n      bucket: %s\n      path: apps/guestbook\n"+
		"      endpoint: %s\n      region: %s\n      access-key-id: %s\n      secret-access-key: %s\n",
		output, s.Bucket, s.URL(), s.Region, UserKey, UserSecret)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	MustRun(s.t, nil, 2*time.Minute, Tool(s.t, "litestream"), "restore", "-config", config, "-o", output, output)
}

// Proxy stands between slasha-init and a server, and breaks what a test asks for.
type Proxy struct {
	Addr string // of the proxy itself
	api  string
	t    testing.TB
}

// StartProxy starts a toxiproxy in front of upstream.
func StartProxy(t testing.TB, upstream string) *Proxy {
	t.Helper()
	api := FreeAddr(t)
	host, port, _ := splitAddr(api)
	proc := Start(t, []string{"LOG_LEVEL=error"}, Tool(t, "toxiproxy"), "-host", host, "-port", port)
	p := &Proxy{Addr: FreeAddr(t), api: "http://" + api, t: t}
	waitAnswer(t, proc, p.api+"/version")
	p.call("/proxies", map[string]any{"name": "s3", "listen": p.Addr, "upstream": upstream, "enabled": true})
	return p
}

// URL is the endpoint behind the proxy.
func (p *Proxy) URL() string { return "http://" + p.Addr }

// Cut takes the server away: connections end, and new ones are refused.
func (p *Proxy) Cut() {
	p.t.Helper()
	p.call("/proxies/s3", map[string]any{"enabled": false})
}

// Mend brings it back.
func (p *Proxy) Mend() {
	p.t.Helper()
	p.call("/proxies/s3", map[string]any{"enabled": true})
}

// Toxic adds a fault by toxiproxy's names, in both directions unless stream is
// "upstream" or "downstream".
func (p *Proxy) Toxic(kind, stream string, attributes map[string]any) {
	p.t.Helper()
	p.call("/proxies/s3/toxics", map[string]any{
		"name": kind + "-" + stream, "type": kind, "stream": stream, "toxicity": 1.0, "attributes": attributes,
	})
}

// Heal removes all faults.
func (p *Proxy) Heal() { p.t.Helper(); p.call("/reset", nil) }

func (p *Proxy) call(path string, body any) {
	p.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.api+path, bytes.NewReader(b))
	if err != nil {
		p.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode >= 300 {
		msg, _ := io.ReadAll(res.Body)
		p.t.Fatalf("toxiproxy: %s: %s: %s", path, res.Status, msg)
	}
}
