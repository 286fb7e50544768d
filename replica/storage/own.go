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

// Own is a small object of ours in the replica's OwnFolder.
type Own struct {
	Data []byte
	// Tag stands for this content, and for nobody else's: an ETag.
	Tag string
	// Age is how long ago it was written, by the clock of the one who keeps it and
	// by no clock of ours; 0 when that is not known.
	Age time.Duration
}

// maxOwn is more than any object of ours is long, in bytes.
const maxOwn = 64 << 10

// ReadOwn reads one of our own objects. The error is os.ErrNotExist when there is
// none of that name.
func (c *Client) ReadOwn(ctx context.Context, name string) (Own, error) {
	start := time.Now()
	err := c.Init(ctx)
	var own Own
	if err == nil {
		own, err = c.readOwn(ctx, name)
	}
	return own, c.answered(start, err, os.ErrNotExist)
}

// WriteOwn writes one of our own objects if that has the given tag, and with an
// empty tag if there is none of that name. It returns the tag of what it wrote.
//
// The error is os.ErrExist when the condition does not hold. That can be our own
// doing: when an answer is lost on the way, the request is made again, and finds
// what the first one wrote. It is errors.ErrUnsupported when the place says that it
// knows no conditions; one may also ignore them without a word.
func (c *Client) WriteOwn(ctx context.Context, name string, data []byte, ifTag string) (tag string, err error) {
	start := time.Now()
	err = c.Init(ctx)
	if err == nil {
		tag, err = c.writeOwn(ctx, name, data, ifTag)
	}
	return tag, c.answered(start, err, os.ErrExist)
}

// answered tells the outcome. An answer that is no failure of the replica is
// given as expected.
func (c *Client) answered(start time.Time, err, expected error) error {
	if errors.Is(err, expected) || errors.Is(err, errors.ErrUnsupported) {
		_ = c.done("lease", -1, start, nil)
		return err
	}
	return c.done("lease", -1, start, err)
}

func (b *bucket) ownKey(name string) *string {
	return aws.String(b.Path + "/" + OwnFolder + "/" + name)
}

func (b *bucket) readOwn(ctx context.Context, name string) (Own, error) {
	out, err := b.own.GetObject(ctx, &awss3.GetObjectInput{Bucket: aws.String(b.Bucket), Key: b.ownKey(name)})
	if api := smithy.APIError(nil); errors.As(err, &api) && api.ErrorCode() == "NoSuchKey" {
		return Own{}, fmt.Errorf("%w: %w", os.ErrNotExist, err)
	}
	if err != nil {
		return Own{}, err
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
		Bucket:      aws.String(b.Bucket),
		Key:         b.ownKey(name),
		Body:        bytes.NewReader(data),
		ContentType: aws.String("application/json"),
	}
	if ifTag == "" {
		in.IfNoneMatch = aws.String("*")
	} else {
		in.IfMatch = aws.String(ifTag)
	}
	out, err := b.own.PutObject(ctx, in)
	if err != nil {
		return "", conditional(err)
	}
	return aws.ToString(out.ETag), nil
}

// conditional marks what a service answers when the condition does not hold (412),
// when two such requests met (409), and when there is nothing whose tag could
// match (404): all three are for the caller to read again. The Amazon S3 user guide
// lists them under conditional writes.
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
