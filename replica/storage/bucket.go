package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// defaultRegion is what Litestream and most S3-compatible servers assume.
const defaultRegion = "us-east-1"

// bucket is a replica in an S3-compatible service, with Litestream's keys and metadata.
type bucket struct {
	cfg    Config
	preset preset
	region string // best guess until ready

	turn      chan struct{} // has room for one, who makes the bucket ready: see ready
	isReady   atomic.Bool
	transport *transport
	s3        *awss3.Client
	uploader  *manager.Uploader
	quick     func(*awss3.Options) // see connect
}

func newBucket(cfg Config) *bucket {
	b := &bucket{
		cfg: cfg, preset: presetOf(cfg.Endpoint), region: cfg.Region,
		turn: make(chan struct{}, 1), transport: newTransport(),
	}
	if b.region == "" {
		b.region = cfg.Endpoint.Region
	}
	if b.region == "" {
		b.region = defaultRegion
	}
	return b
}

func (b *bucket) typeName() string { return "s3" }

// ready finds the bucket's region, once. A failure is not remembered: the next call tries
// again.
func (b *bucket) ready(ctx context.Context) error {
	if b.isReady.Load() {
		return nil
	}
	// Not a mutex: whoever waits here has a deadline of its own.
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if b.isReady.Load() {
		return nil
	}
	if err := b.connect(ctx); err != nil {
		return err
	}
	_, err := b.first(ctx)
	if answer := b.transport.bucketRegion(); err != nil && answer != "" && answer != b.region {
		b.cfg.Logger.Info("bucket is in another region than expected", "expected", b.region, "region", answer)
		b.region = answer
		if err = b.connect(ctx); err == nil {
			_, err = b.first(ctx)
		}
	}
	if err != nil {
		return err
	}
	b.isReady.Store(true)
	return nil
}

// connect makes the client for the region of the moment.
func (b *bucket) connect(ctx context.Context) error {
	opts := []func(*config.LoadOptions) error{
		config.WithRegion(b.region),
		config.WithHTTPClient(b.transport.keysClient()),
		config.WithLogger(logging.Nop{}), // the SDK would write to stderr by itself, and repeat what servers say
		config.WithRetryer(patient),
	}
	if b.cfg.AccessKeyID != "" && b.cfg.SecretAccessKey != "" {
		opts = append(opts, config.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(b.cfg.AccessKeyID, b.cfg.SecretAccessKey, "")))
	}
	cfg, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return fmt.Errorf("load AWS configuration: %w", err)
	}
	cfg.Credentials = aws.NewCredentialsCache(credentialSource{cfg.Credentials})
	checksums := aws.RequestChecksumCalculationWhenSupported
	if b.cfg.Endpoint.URL != "" {
		// Only Amazon is sure to understand the SDK's checksums and their aws-chunked
		// encoding (Litestream's issues 918, 947 and 948).
		checksums = aws.RequestChecksumCalculationWhenRequired
	}
	b.s3 = awss3.NewFromConfig(cfg, func(o *awss3.Options) {
		o.HTTPClient = b.transport.client()
		o.UsePathStyle = b.preset.pathStyle
		o.UseARNRegion = true
		if b.cfg.Endpoint.URL != "" {
			o.BaseEndpoint = aws.String(b.cfg.Endpoint.URL)
		}
		o.RequestChecksumCalculation = checksums
		// LTX files have checksums of their own, and the SDK would warn of every part of a
		// file that it can't check it.
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.APIOptions = append(o.APIOptions, awsmiddleware.AddUserAgentKey("slasha-init"))
		if b.preset.consistent {
			o.APIOptions = append(o.APIOptions, smithyhttp.SetHeaderValue("X-Tigris-Consistent", "true"))
		}
		if b.preset.bareEncoding {
			o.APIOptions = append(o.APIOptions, dropAcceptEncoding)
		}
	})
	hasty := hasty()
	b.quick = func(o *awss3.Options) { o.Retryer = hasty }
	b.uploader = manager.NewUploader(uploads{b.s3}, func(u *manager.Uploader) {
		u.RequestChecksumCalculation = checksums // for the parts of an upload; the client's setting does not reach them
		if b.preset.partSize != 0 {
			u.PartSize = b.preset.partSize
		}
		if b.preset.concurrency != 0 {
			u.Concurrency = b.preset.concurrency
		}
	})
	return nil
}

// patient is how lists, uploads and deletes are tried again, and reads of 0.3: as
// Litestream does. The SDK's own budget for retries only grows with successes, so an
// outage would use it up and every operation would fail at once when trying again matters
// most. Tigris sheds load with status 408 and the code RequestCanceled. The operation's
// watch ends what takes too long.
func patient() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = 8
		o.MaxBackoff = time.Second
		o.RateLimiter = ratelimit.None
		o.Retryables = append(o.Retryables,
			retry.RetryableHTTPStatusCode{Codes: map[int]struct{}{http.StatusRequestTimeout: {}, http.StatusTooManyRequests: {}}},
			retry.RetryableErrorCode{Codes: map[string]struct{}{"RequestCanceled": {}}},
		)
	})
}

// hasty is how a check, a read of a file and a request for a lease are tried again: whoever
// makes them tries again himself, or must know soon.
func hasty() aws.Retryer {
	return retry.NewStandard(func(o *retry.StandardOptions) {
		o.MaxAttempts = 3
		o.MaxBackoff = time.Second
	})
}

// dropAcceptEncoding removes the header before the request is signed.
func dropAcceptEncoding(stack *middleware.Stack) error {
	return stack.Finalize.Insert(middleware.FinalizeMiddlewareFunc("DropAcceptEncoding",
		func(ctx context.Context, in middleware.FinalizeInput, next middleware.FinalizeHandler) (middleware.FinalizeOutput, middleware.Metadata, error) {
			if req, ok := in.Request.(*smithyhttp.Request); ok {
				req.Header.Del("Accept-Encoding")
			}
			return next.HandleFinalize(ctx, in)
		}), "Signing", middleware.Before)
}

// name returns the bucket's, as the SDK wants it.
func (b *bucket) name() *string { return aws.String(b.cfg.Bucket) }

// key returns the key of a file, by its name below the replica's root.
func (b *bucket) key(name string) *string { return aws.String(b.cfg.Prefix + "/" + name) }

// check lists one key. A LIST, and no HEAD: the answer to a HEAD has no body, so its
// error has no code.
func (b *bucket) check(ctx context.Context) error {
	_, err := b.first(ctx)
	return err
}

func (b *bucket) empty(ctx context.Context) (bool, error) {
	key, err := b.first(ctx)
	return key == "" || strings.HasPrefix(key, *b.key(ownFolder + "/")), err
}

// first returns the first key of the replica, or "" if it has none.
func (b *bucket) first(ctx context.Context) (string, error) {
	out, err := b.page(ctx, &awss3.ListObjectsV2Input{Prefix: b.key(""), MaxKeys: aws.Int32(1)}, b.quick)
	if err != nil || len(out.Contents) == 0 {
		return "", err
	}
	return aws.ToString(out.Contents[0].Key), nil
}

// page requests one page of a list.
func (b *bucket) page(ctx context.Context, in *awss3.ListObjectsV2Input, opts ...func(*awss3.Options)) (*awss3.ListObjectsV2Output, error) {
	in.Bucket = b.name()
	out, err := b.s3.ListObjectsV2(ctx, in, opts...)
	if err != nil {
		return nil, err
	}
	if out.Name == nil && out.IsTruncated == nil && out.KeyCount == nil && len(out.Contents)+len(out.CommonPrefixes) == 0 {
		// The SDK takes any page for an empty list: a login page with status 200 would pass
		// for a bucket without a backup.
		return nil, errNotS3
	}
	return out, nil
}

func (b *bucket) list(name string, want contents) pages {
	return &bucketPages{b: b, folder: *b.key(name + "/"), want: want}
}

type bucketPages struct {
	b      *bucket
	folder string
	want   contents
	token  *string // of the next page
}

func (p *bucketPages) next(ctx context.Context) (page []entry, last bool, err error) {
	in := &awss3.ListObjectsV2Input{Prefix: aws.String(p.folder), ContinuationToken: p.token}
	if p.want == folders {
		in.Delimiter = aws.String("/")
	}
	out, err := p.b.page(ctx, in)
	if err != nil {
		return nil, false, err
	}
	for _, o := range out.CommonPrefixes {
		page = append(page, entry{name: strings.TrimSuffix(strings.TrimPrefix(aws.ToString(o.Prefix), p.folder), "/")})
	}
	for _, o := range out.Contents {
		page = append(page, entry{strings.TrimPrefix(aws.ToString(o.Key), p.folder), aws.ToInt64(o.Size), aws.ToTime(o.LastModified)})
	}
	if p.want == datedFiles {
		if err := p.b.date(ctx, p.folder, page); err != nil {
			return nil, false, err
		}
	}
	p.token = out.NextContinuationToken
	return page, !aws.ToBool(out.IsTruncated) || aws.ToString(p.token) == "", nil
}

// open reads with the patience of Litestream, whose caller does not try again.
func (b *bucket) open(ctx context.Context, name string) (io.ReadCloser, error) {
	return b.get(ctx, &awss3.GetObjectInput{Key: b.key(name)})
}

func (b *bucket) get(ctx context.Context, in *awss3.GetObjectInput, opts ...func(*awss3.Options)) (io.ReadCloser, error) {
	in.Bucket = b.name()
	out, err := b.s3.GetObject(ctx, in, opts...)
	if err != nil {
		return nil, absent(err)
	}
	return out.Body, nil
}

// absent marks the answer that an object does not exist.
func absent(err error) error {
	if api := smithy.APIError(nil); errors.As(err, &api) && api.ErrorCode() == "NoSuchKey" {
		return fmt.Errorf("%w: %w", os.ErrNotExist, err)
	}
	return err
}
