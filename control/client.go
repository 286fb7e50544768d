package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// Client asks the slasha-init behind a socket.
type Client struct{ Path string }

// Sync returns when everything whose commit returned before the call is in the
// replica. After an error it may be there or not; the error is ctx's when ctx ended.
func (c Client) Sync(ctx context.Context) (Synced, error) {
	var done Synced
	return done, c.ask(ctx, "/sync", nil, &done)
}

// Restore restores the state of a moment, zero for the newest, and returns when the app
// runs again on it. The error is a *Refusal when nothing was done at all, and ctx's when
// ctx ended; the restore goes on then.
func (c Client) Restore(ctx context.Context, timestamp time.Time) (Restored, error) {
	var done Restored
	return done, c.ask(ctx, "/restore", order{timestamp}, &done)
}

func (c Client) ask(ctx context.Context, what string, asked, done any) error {
	body, err := json.Marshal(asked)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://slasha-init"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := c.HTTP()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode == http.StatusOK {
		return dec.Decode(done)
	}
	var failed failure
	if err := dec.Decode(&failed); err != nil || failed.Error == "" {
		failed.Error = "the answer was " + resp.Status
	}
	if resp.StatusCode == http.StatusConflict || resp.StatusCode == http.StatusForbidden {
		return &Refusal{failed.Error}
	}
	return errors.New(failed.Error)
}

// HTTP returns a client for the same socket, whatever host an address names.
func (c Client) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			path, release, err := shortened(c.Path)
			if err != nil {
				return nil, err
			}
			defer release()
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}

// explain turns the error of a request without an answer into a sentence.
func (c Client) explain(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("slasha-init does not run there: nothing answers on %s", c.Path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission to use %s: only root, slasha-init's own user and the app's user may", c.Path)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return errors.New("slasha-init ended before it answered")
	}
	return err
}
