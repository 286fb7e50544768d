package storage

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/benbjohnson/litestream/s3"
	"github.com/superfly/ltx"
)

// defaultRegion is what Litestream and most S3-compatible servers assume.
const defaultRegion = "us-east-1"

// bucket is a replica in an S3-compatible service: Litestream's client, and
// beside it one of our own for what Litestream's can't tell, namely the region
// and a single cheap request, and for what it does slowly: reading many files.
type bucket struct {
	*s3.ReplicaClient
	cfg    Config
	region string // best guess until ready

	turn  chan struct{} // has room for one, who makes the bucket ready: see Init
	ready atomic.Bool
	own   *awss3.Client
	tell  *regionTeller
}

// newBucket lets Litestream's own URL parsing choose what each provider needs
// (path style, payload signing, part size, concurrency, Content-MD5), so that
// its list of providers is ours.
func newBucket(cfg Config) (*bucket, error) {
	query := url.Values{}
	if cfg.Endpoint.URL != "" {
		query.Set("endpoint", cfg.Endpoint.URL)
	}
	made, err := s3.NewReplicaClientFromURL("s3", cfg.Bucket, cfg.Prefix, query, nil)
	if err != nil {
		return nil, fmt.Errorf("storage: %w", err)
	}
	c, ok := made.(*s3.ReplicaClient)
	if !ok {
		return nil, fmt.Errorf("storage: litestream made a %T", made)
	}
	// What the library read from the process environment, or read into a
	// bucket name that looks like a host, is put right.
	c.Bucket, c.Endpoint = cfg.Bucket, cfg.Endpoint.URL
	c.AccessKeyID, c.SecretAccessKey = cfg.AccessKeyID, cfg.SecretAccessKey
	if c.Endpoint == "" {
		c.ForcePathStyle = false
	}

	b := &bucket{ReplicaClient: c, cfg: cfg, region: cfg.Region, turn: make(chan struct{}, 1)}
	if b.region == "" {
		b.region = cfg.Endpoint.Region
	}
	if b.region == "" {
		b.region = defaultRegion
	}
	return b, nil
}

// Init finds the bucket's region, once, and readies Litestream's client. A
// failure is not remembered: the next call tries again.
func (b *bucket) Init(ctx context.Context) error {
	if b.ready.Load() {
		return nil
	}
	// Not a mutex: who waits here has a deadline of its own.
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.ready.Load() {
		return nil
	}
	if err := b.connect(ctx); err != nil {
		return err
	}
	_, err := b.first(ctx)
	if answer := b.tell.region(); err != nil && answer != "" && answer != b.region {
		b.cfg.Logger.Info("bucket is in another region than expected", "expected", b.region, "region", answer)
		b.region = answer
		if err = b.connect(ctx); err == nil {
			_, err = b.first(ctx)
		}
	}
	if err != nil {
		return err
	}
	b.Region = b.region
	if err := b.ReplicaClient.Init(ctx); err != nil {
		return err
	}
	b.ready.Store(true)
	return nil
}

// GenerationsV3 is where every look at a 0.3 replica begins. Litestream's
// client would initialise itself here, with a region that nobody asked about.
func (b *bucket) GenerationsV3(ctx context.Context) ([]string, error) {
	if err := b.Init(ctx); err != nil {
		return nil, err
	}
	return b.ReplicaClient.GenerationsV3(ctx)
}

// check lists one key. A LIST, and no HEAD: the answer to a HEAD has no body,
// so its error has no code.
func (b *bucket) check(ctx context.Context) error {
	_, err := b.first(ctx)
	return err
}

func (b *bucket) empty(ctx context.Context) (bool, error) {
	key, err := b.first(ctx)
	return key == "" || strings.HasPrefix(key, b.Path+"/"+OwnFolder+"/"), err
}

// OpenLTXFile reads over connections that are kept; see mostConnections.
func (b *bucket) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	part := fmt.Sprintf("bytes=%d-", offset)
	if size > 0 {
		part += strconv.FormatInt(offset+size-1, 10)
	}
	out, err := b.own.GetObject(ctx, &awss3.GetObjectInput{
		Bucket: aws.String(b.Bucket),
		Key:    aws.String(b.key(level, minTXID, maxTXID)),
		Range:  aws.String(part),
	})
	if api := smithy.APIError(nil); errors.As(err, &api) && api.ErrorCode() == "NoSuchKey" {
		return nil, fmt.Errorf("%w: %w", os.ErrNotExist, err)
	}
	if err != nil {
		return nil, err
	}
	return out.Body, nil
}

// key is where Litestream keeps a file.
func (b *bucket) key(level int, minTXID, maxTXID ltx.TXID) string {
	return fmt.Sprintf("%s/%04x/%s", b.Path, level, ltx.FormatFilename(minTXID, maxTXID))
}

// first returns the first key of the replica, or "" when there is none.
func (b *bucket) first(ctx context.Context) (string, error) {
	out, err := b.own.ListObjectsV2(ctx, &awss3.ListObjectsV2Input{
		Bucket:  aws.String(b.Bucket),
		Prefix:  aws.String(b.Path + "/"),
		MaxKeys: aws.Int32(1),
	})
	switch {
	case err != nil:
		return "", err
	case out.Name == nil && out.IsTruncated == nil && out.KeyCount == nil && len(out.Contents) == 0:
		// The SDK takes any page for an empty list: a login page with status 200
		// would pass for a bucket without a backup.
		return "", errNotS3
	case len(out.Contents) == 0:
		return "", nil
	}
	return aws.ToString(out.Contents[0].Key), nil
}

// connect makes our own client for the region of the moment.
func (b *bucket) connect(ctx context.Context) error {
	b.tell = &regionTeller{next: newTransport()}
	opts := []func(*config.LoadOptions) error{
		config.WithRegion(b.region),
		config.WithHTTPClient(&http.Client{Transport: b.tell, CheckRedirect: fewRedirects}),
		config.WithLogger(logging.Nop{}), // it would write to stderr by itself, and what servers say
		config.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) {
				o.MaxAttempts = 3
				o.MaxBackoff = time.Second
			})
		}),
	}
	if b.AccessKeyID != "" && b.SecretAccessKey != "" {
		opts = append(opts, config.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(b.AccessKeyID, b.SecretAccessKey, "")))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return fmt.Errorf("load AWS configuration: %w", err)
	}
	cfg.Credentials = aws.NewCredentialsCache(credentialSource{cfg.Credentials})
	b.own = awss3.NewFromConfig(cfg, func(o *awss3.Options) {
		o.UsePathStyle = b.ForcePathStyle
		if b.Endpoint != "" {
			o.BaseEndpoint = aws.String(b.Endpoint)
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		}
		// LTX files have checksums of their own, and the SDK would warn of every
		// part of a file that it can't check it.
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})
	return nil
}

// fewRedirects follows what keeps a request as it is, as the SDK's own HTTP client
// does. The others turn an upload into a download, and show as an error.
func fewRedirects(req *http.Request, via []*http.Request) error {
	switch status := req.Response.StatusCode; {
	case status != http.StatusTemporaryRedirect && status != http.StatusPermanentRedirect, len(via) > 3:
		return http.ErrUseLastResponse
	}
	return nil
}

// errNoCredentials marks that the SDK's chain found nothing to sign with; the
// SDK itself has no type for it.
var errNoCredentials = errors.New("no credentials")

type credentialSource struct{ aws.CredentialsProvider }

func (s credentialSource) Retrieve(ctx context.Context) (aws.Credentials, error) {
	creds, err := s.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return creds, fmt.Errorf("%w: %w", errNoCredentials, err)
	}
	return creds, nil
}

// mostConnections is how many connections are kept for the next request: as many
// as a restore reads from at once. Litestream's own client keeps two, and so
// makes a new connection for nearly every file of a plan.
const mostConnections = 128

// newTransport speaks HTTP/1.1 alone: over HTTP/2 all reads would share one
// connection, and its rate.
func newTransport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConns:          mostConnections,
		MaxIdleConnsPerHost:   mostConnections,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: stallAfter,
	}
}

// regionTeller reads the bucket's region out of a refusal. Servers put it into
// a header (x-amz-bucket-region, with a redirect) or into the error's XML
// (Region, with AuthorizationHeaderMalformed); the SDK's errors keep neither.
type regionTeller struct {
	next http.RoundTripper

	mu     sync.Mutex
	answer string
}

// maxErrorBody is more than any S3 error document is long, in bytes.
const maxErrorBody = 64 << 10

func (t *regionTeller) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := t.next.RoundTrip(req)
	if err != nil || res.StatusCode < 300 {
		return res, err
	}
	region := res.Header.Get("X-Amz-Bucket-Region")
	if region == "" && res.Body != nil {
		// An answer that breaks off still has a status, and reading on fails again.
		head, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(head), res.Body), res.Body}
		region = regionInError(head)
	}
	if validRegion(region) {
		t.mu.Lock()
		t.answer = region
		t.mu.Unlock()
	}
	return res, nil
}

func (t *regionTeller) region() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.answer
}

// regionInError returns the Region element of an S3 error document, or "".
func regionInError(doc []byte) string {
	var e struct {
		XMLName xml.Name `xml:"Error"`
		Region  string   `xml:"Region"`
	}
	if xml.Unmarshal(doc, &e) != nil {
		return ""
	}
	return strings.TrimSpace(e.Region)
}

// validRegion keeps what a server says out of our signatures and logs unless it
// looks like a region.
func validRegion(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return true
}

// IsolateEnvironment removes from this process's environment what would change
// where our requests go or whom they trust. The environment of a container is
// the app's: its AWS_ENDPOINT_URL, AWS_CA_BUNDLE or AWS_REGION are for the app's
// own use of AWS. With explicit keys nothing of AWS is left; without, what
// the SDK's credential chain needs stays. Take the app's environment before.
func IsolateEnvironment(explicitKeys bool) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "LITESTREAM_"):
		case !strings.HasPrefix(name, "AWS_"):
			continue
		case !explicitKeys && credentialVariable(name):
			continue
		}
		_ = os.Unsetenv(name)
	}
	_ = os.Setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
	if explicitKeys {
		_ = os.Setenv("AWS_CONFIG_FILE", os.DevNull)
		_ = os.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	}
}

// credentialVariable reports whether the SDK's chain may use the variable to
// find credentials.
func credentialVariable(name string) bool {
	switch name {
	case "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
		"AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE",
		"AWS_ROLE_ARN", "AWS_ROLE_SESSION_NAME", "AWS_WEB_IDENTITY_TOKEN_FILE":
		return true
	}
	return strings.HasPrefix(name, "AWS_CONTAINER_") || strings.HasPrefix(name, "AWS_EC2_METADATA_")
}
