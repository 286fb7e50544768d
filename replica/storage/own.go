package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
)

// ownFolder is the folder of a replica that Litestream knows nothing of. It sorts behind
// all of Litestream's: the levels 0000 to 0009, and generations.
const ownFolder = "slasha"

// maxOwn is more than any object of ours is long, in bytes.
const maxOwn = 64 << 10

// Own is a small object of ours in the replica's ownFolder.
type Own struct {
	Data []byte
	// Tag stands for this content and for no other: an ETag.
	Tag string
	// Age is the time since it was written, by the clock of the service or machine that
	// keeps it and not by ours; 0 when that is not known.
	Age time.Duration
}

// ReadOwn reads one of our own objects. The error is os.ErrNotExist if there is none of
// that name.
func (c *Client) ReadOwn(ctx context.Context, name string) (own Own, err error) {
	err = c.do(ctx, "lease", -1, stallAfter, func(op *operation) (err error) {
		own, err = c.place.readOwn(op.ctx, name)
		return err
	})
	return own, err
}

// WriteOwn writes one of our own objects if the present one has the given tag, or, with
// an empty tag, if there is none of that name. It returns the tag of what it wrote.
//
// The error is os.ErrExist when the condition does not hold. We may have caused that
// ourselves: when an answer is lost on the way, the request is made again, and finds
// what the first one wrote. The error is errors.ErrUnsupported when the place reports
// that it knows no conditions; a place may also ignore them and report nothing.
func (c *Client) WriteOwn(ctx context.Context, name string, data []byte, ifTag string) (tag string, err error) {
	err = c.do(ctx, "lease", -1, stallAfter, func(op *operation) (err error) {
		tag, err = c.place.writeOwn(op.ctx, name, data, ifTag)
		return err
	})
	return tag, err
}

func (b *bucket) readOwn(ctx context.Context, name string) (Own, error) {
	out, err := b.s3.GetObject(ctx, &awss3.GetObjectInput{Bucket: b.name(), Key: b.key(ownFolder + "/" + name)}, b.quick)
	if err != nil {
		return Own{}, absent(err)
	}
	data, err := io.ReadAll(io.LimitReader(out.Body, maxOwn))
	if err := errors.Join(err, out.Body.Close()); err != nil {
		return Own{}, err
	}
	own := Own{Data: data, Tag: aws.ToString(out.ETag)}
	if now, ok := awsmiddleware.GetServerTime(out.ResultMetadata); ok && out.LastModified != nil {
		own.Age = max(0, now.Sub(*out.LastModified))
	}
	if own.Tag == "" {
		return Own{}, fmt.Errorf("%w: the service gives no ETag", errors.ErrUnsupported)
	}
	return own, nil
}

func (b *bucket) writeOwn(ctx context.Context, name string, data []byte, ifTag string) (string, error) {
	in := &awss3.PutObjectInput{
		Bucket:      b.name(),
		Key:         b.key(ownFolder + "/" + name),
		Body:        bytes.NewReader(data),
		ContentType: aws.String("application/json"),
	}
	if ifTag == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = aws.String(ifTag)
	}
	out, err := b.s3.PutObject(ctx, in, b.quick)
	if err != nil {
		return "", conditional(err)
	}
	return aws.ToString(out.ETag), nil
}

// conditional marks what a service answers when the condition does not hold (412), when
// two such requests met (409), and when there is no object whose tag could match (404):
// after all three the caller has to read again. The Amazon S3 user guide lists them under
// conditional writes.
func conditional(err error) error {
	var api smithy.APIError
	var res *awshttp.ResponseError
	code, status := "", 0
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	if errors.As(err, &res) {
		status = res.HTTPStatusCode()
	}
	switch {
	case status == http.StatusPreconditionFailed, status == http.StatusConflict, code == "NoSuchKey":
		return fmt.Errorf("%w: %w", os.ErrExist, err)
	case status == http.StatusNotImplemented, code == "NotImplemented":
		return fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	return err
}
