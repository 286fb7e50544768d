package storage

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/benbjohnson/litestream"
	"github.com/superfly/ltx"
)

var (
	_ litestream.ReplicaClient   = (*Client)(nil)
	_ litestream.ReplicaClientV3 = (*Client)(nil) // else 0.3 replicas look empty
)

func apiError(op, code string, status int) error {
	return &smithy.OperationError{ServiceID: "S3", OperationName: op, Err: &awshttp.ResponseError{
		ResponseError: &smithyhttp.ResponseError{
			Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status}},
			Err:      &smithy.GenericAPIError{Code: code, Message: "as the server puts it"},
		},
	}}
}

func TestExplain(t *testing.T) {
	cfg := Config{Bucket: "pics", Endpoint: Endpoint{URL: "https://s3.example.com"}}
	for name, c := range map[string]struct {
		err       error
		class     Class
		temporary bool
		want      string
	}{
		"key":       {apiError("PutObject", "InvalidAccessKeyId", 403), ClassAccessKey, false, `bucket "pics" refused the access key (InvalidAccessKeyId)`},
		"secret":    {apiError("PutObject", "SignatureDoesNotMatch", 403), ClassSecret, false, `bucket "pics" refused the signature: the secret access key is wrong (SignatureDoesNotMatch)`},
		"expired":   {apiError("PutObject", "ExpiredToken", 400), ClassExpired, false, "temporary credentials have expired"},
		"bucket":    {apiError("ListObjectsV2", "NoSuchBucket", 404), ClassBucket, false, `there is no bucket "pics" at s3.example.com (NoSuchBucket)`},
		"denied":    {apiError("PutObject", "AccessDenied", 403), ClassDenied, false, `denied access: the key needs s3:PutObject (AccessDenied)`},
		"deletion":  {apiError("DeleteObjects", "AccessDenied", 403), ClassDenied, false, "s3:DeleteObject"},
		"bare 403":  {apiError("ListObjectsV2", "", 403), ClassDenied, false, "without saying why, as a proxy or a firewall does (status 403)"},
		"clock":     {apiError("PutObject", "RequestTimeTooSkewed", 403), ClassClock, false, "clock is wrong"},
		"region":    {apiError("PutObject", "PermanentRedirect", 301), ClassRegion, false, "--region"},
		"slow down": {apiError("PutObject", "SlowDown", 503), ClassThrottled, true, "fewer requests"},
		// What the SDK gives when it has tried again too often of late.
		"no retry":   {errors.Join(apiError("PutObject", "SlowDown", 503), ratelimit.QuotaExceededError{}), ClassThrottled, true, "fewer requests (SlowDown)"},
		"bare 429":   {apiError("PutObject", "", 429), ClassThrottled, true, "fewer requests"},
		"quota":      {apiError("PutObject", "QuotaExceeded", 403), ClassQuota, true, "quota"},
		"5xx":        {apiError("PutObject", "InternalError", 500), ClassServer, true, "fault of its own"},
		"bare 502":   {apiError("PutObject", "", 502), ClassServer, true, "fault of its own (status 502)"},
		"unknown":    {apiError("PutObject", "Odd\x1bCode", 418), ClassOther, false, `refused PutObject (Odd Code, status 418)`},
		"DNS":        {&net.OpError{Op: "dial", Err: &net.DNSError{Name: "s3.example.com", IsNotFound: true}}, ClassDNS, true, `no host "s3.example.com"`},
		"DNS server": {&net.DNSError{Name: "s3.example.com", IsTimeout: true}, ClassDNS, true, "name server"},
		"refused":    {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, ClassRefused, true, "nothing listens at s3.example.com"},
		"reset":      {&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, ClassNetwork, true, "broke the connection off"},
		"no route":   {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.EHOSTUNREACH)}, ClassNetwork, true, "no route to host"},
		"timeout":    {&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}, ClassTimeout, true, "does not answer"},
		"stalled":    {fmt.Errorf("upload: %w", errStalled), ClassTimeout, true, "no answer for 20s"},
		"deadline":   {fmt.Errorf("upload: %w", context.DeadlineExceeded), ClassTimeout, true, "in time"},
		"CA":         {fmt.Errorf("tls: %w", x509.UnknownAuthorityError{}), ClassTLS, false, "SSL_CERT_FILE"},
		"no TLS":     {http.ErrSchemeMismatch, ClassTLS, false, "http://"},
		"no keys":    {fmt.Errorf("get identity: %w", errNoCredentials), ClassNoKeys, false, "--access-key-id"},
		"disk":       {fmt.Errorf("capture: %w", syscall.ENOSPC), ClassDisk, true, "local disk is full"},
		"other":      {errors.New("something\nodd"), ClassOther, true, "something odd"},
	} {
		p := explain(c.err, cfg)
		if p.Class != c.class || p.Temporary != c.temporary || !strings.Contains(p.Sentence, c.want) {
			t.Errorf("%s: %+v, want %s, temporary %v, %q", name, p, c.class, c.temporary, c.want)
		}
		if strings.ContainsAny(p.Sentence, "\n\x1b") || strings.Contains(p.Sentence, "as the server puts it") {
			t.Errorf("%s: %q", name, p.Sentence)
		}
	}
	folder := Config{Endpoint: Endpoint{Dir: "/backups"}}
	if p := explain(&os.PathError{Op: "mkdir", Path: "/backups/x", Err: syscall.EROFS}, folder); p.Class != ClassFolder ||
		p.Sentence != `replica folder "/backups": cannot mkdir /backups/x: read-only file system` {
		t.Errorf("folder: %+v", p)
	}
}

func TestRegionInError(t *testing.T) {
	for doc, want := range map[string]string{
		`<?xml version="1.0"?><Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>`: "eu-west-1",
		`<Error><Code>AccessDenied</Code></Error>`:                                                                "",
		`not XML`: "",
		``:        "",
		`<Error><Region>EVIL"/../</Region></Error>`: `EVIL"/../`,
	} {
		if got := regionInError([]byte(doc)); got != want {
			t.Errorf("%q: %q", doc, got)
		}
	}
	for s, want := range map[string]bool{"eu-west-1": true, "auto": true, "": false, `EVIL"/../`: false, strings.Repeat("a", 65): false} {
		if validRegion(s) != want {
			t.Errorf("validRegion(%q) is %v", s, !want)
		}
	}
}

// fake is a place for faults that no server shows on request.
type fake struct {
	place
	wrote io.Reader
	write func(ctx context.Context, r io.Reader) error
	read  func(ctx context.Context) (io.ReadCloser, error)
}

func (f *fake) ready(context.Context) error { return nil }

func (f *fake) writeLTX(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error) {
	f.wrote = r
	return &ltx.FileInfo{}, f.write(ctx, r)
}

func (f *fake) openLTX(ctx context.Context, _ int, _, _ ltx.TXID, _, _ int64) (io.ReadCloser, error) {
	return f.read(ctx)
}

// A wrapped file would lose its size and its seeking, and with them the single
// PUT and every retry.
func TestAFileGoesToTheUploaderAsItIs(t *testing.T) {
	f := &fake{write: func(context.Context, io.Reader) error { return nil }}
	c := &Client{place: f}
	file, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	if _, err := c.WriteLTXFile(t.Context(), 0, 1, 1, file); err != nil {
		t.Fatal(err)
	}
	if f.wrote != io.Reader(file) {
		t.Errorf("the uploader got a %T", f.wrote)
	}
}

func TestAStalledOperationEnds(t *testing.T) {
	old := stallAfter
	stallAfter = 50 * time.Millisecond
	defer func() { stallAfter = old }()
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	var got []Result
	c := &Client{
		cfg: Config{OnResult: func(r Result) { got = append(got, r) }},
		place: &fake{
			write: func(ctx context.Context, _ io.Reader) error { return hang(ctx) },
			read:  func(ctx context.Context) (io.ReadCloser, error) { return nil, hang(ctx) },
		},
	}
	_, err := c.WriteLTXFile(t.Context(), 0, 1, 1, bytes.NewReader(nil))
	if !errors.Is(err, errStalled) {
		t.Errorf("write: %v", err)
	}
	if _, err := c.OpenLTXFile(t.Context(), 0, 1, 1, 0, 0); !errors.Is(err, errStalled) {
		t.Errorf("open: %v", err)
	}
	if len(got) != 2 || got[0].Op != "write" || got[1].Op != "read" || got[0].Err == nil || got[1].Err == nil {
		t.Errorf("got %+v", got)
	}
	// A caller's own end is not the replica's fault.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.WriteLTXFile(ctx, 0, 1, 1, bytes.NewReader(nil)); !errors.Is(err, context.Canceled) || len(got) != 2 {
		t.Errorf("canceled: %v, got %+v", err, got)
	}
}

// slowReader makes progress, but takes longer than a stall in all.
type slowReader struct{ left int }

func (r *slowReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	r.left--
	<-time.After(20 * time.Millisecond)
	return copy(p, "x"), nil
}

func TestASlowStreamIsNoStall(t *testing.T) {
	old := stallAfter
	stallAfter = 60 * time.Millisecond
	defer func() { stallAfter = old }()
	c := &Client{place: &fake{write: func(ctx context.Context, r io.Reader) error {
		_, err := io.Copy(io.Discard, r)
		return errors.Join(err, ctx.Err())
	}}}
	if _, err := c.WriteLTXFile(t.Context(), 9, 1, 1, &slowReader{left: 10}); err != nil {
		t.Errorf("%v", err)
	}
}

func TestFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backups")
	c, err := Open(Config{Endpoint: Endpoint{Dir: dir}, Prefix: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	if c.String() != "file://"+dir+"/shop" {
		t.Errorf("it is called %s", c)
	}
	for _, made := range []string{"", "shop", "shop/" + ownFolder} {
		if err := os.MkdirAll(filepath.Join(dir, made), 0o755); err != nil {
			t.Fatal(err)
		}
		if empty, err := c.Empty(t.Context()); !empty || err != nil {
			t.Errorf("with %q: empty %v, %v", made, empty, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "shop", "ltx", "0"), 0o755); err != nil {
		t.Fatal(err)
	}
	if empty, err := c.Empty(t.Context()); empty || err != nil {
		t.Errorf("with ltx: empty %v, %v", empty, err)
	}
	if err := c.DeleteAll(t.Context()); err == nil {
		t.Error("deleted all")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Check(t.Context()); err == nil {
		t.Error("a file passes for a folder")
	}
}

func TestIsolateEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_CA_BUNDLE": "/x", "AWS_ENDPOINT_URL": "http://x", "AWS_REGION": "x", "AWS_ACCESS_KEY_ID": "x",
		"AWS_PROFILE": "x", "LITESTREAM_S3_DEBUG": "all", "OTHER": "x",
	} {
		t.Setenv(name, value)
	}
	t.Setenv("AWS_CONFIG_FILE", "/x")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/x")
	t.Setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "")
	IsolateEnvironment(false)
	for name, want := range map[string]string{
		"AWS_CA_BUNDLE": "", "AWS_ENDPOINT_URL": "", "AWS_REGION": "", "LITESTREAM_S3_DEBUG": "",
		"AWS_ACCESS_KEY_ID": "x", "AWS_PROFILE": "x", "AWS_CONFIG_FILE": "/x", "OTHER": "x",
	} {
		if got := os.Getenv(name); got != want {
			t.Errorf("with the chain, %s is %q", name, got)
		}
	}
	IsolateEnvironment(true)
	for name, want := range map[string]string{"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": os.DevNull, "OTHER": "x"} {
		if got := os.Getenv(name); got != want {
			t.Errorf("with keys, %s is %q", name, got)
		}
	}
}
