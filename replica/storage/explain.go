package storage

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/aws/smithy-go"
)

// Class groups errors by what a person can do about them.
type Class string

// The classes of errors, as metrics and logs name them.
const (
	ClassAccessKey Class = "access_key" // the key is unknown
	ClassSecret    Class = "secret"     // the signature does not match
	ClassExpired   Class = "expired"    // a temporary credential ran out
	ClassNoKeys    Class = "no_keys"    // the SDK's chain found none
	ClassBucket    Class = "bucket"     // no such bucket
	ClassDenied    Class = "denied"     // the key may not do this
	ClassClock     Class = "clock"      // our clock is wrong
	ClassRegion    Class = "region"
	ClassTLS       Class = "tls"
	ClassDNS       Class = "dns"
	ClassRefused   Class = "refused" // nothing listens
	ClassNetwork   Class = "network" // reset, unreachable
	ClassTimeout   Class = "timeout"
	ClassThrottled Class = "throttled"
	ClassQuota     Class = "quota"
	ClassServer    Class = "server" // 5xx

	ClassEndpoint    Class = "endpoint"    // what answers is not an S3 service
	ClassUnsupported Class = "unsupported" // it is one, but lacks what we need
	ClassSize        Class = "size"        // an upload is too large for it
	ClassKMS         Class = "kms"         // the bucket's encryption key
	ClassArchived    Class = "archived"    // a file can't be read from an archive

	ClassFolder   Class = "folder" // a local replica folder
	ClassDisk     Class = "disk"   // our own disk
	ClassCanceled Class = "canceled"
	ClassOther    Class = "other"
)

// Problem explains an error of the replica.
type Problem struct {
	Class Class
	// Sentence is one line for a person. It holds no secret.
	Sentence string
	// Temporary is true if the same request may well succeed later although nobody
	// changes anything.
	Temporary bool
}

func explain(err error, cfg Config) Problem {
	if err == nil {
		return Problem{}
	}
	e := explainer{cfg: cfg, err: err}
	for _, try := range []func() (Problem, bool){e.folder, e.keyless, e.lookup, e.local, e.service, e.secured, e.network} {
		if p, ok := try(); ok {
			return p
		}
	}
	var op *smithy.OperationError
	if errors.As(err, &op) { // the rest are names and ids of requests
		err = op.Err
	}
	return Problem{ClassOther, oneLine(err.Error()), true}
}

type explainer struct {
	cfg Config
	err error
}

func (e explainer) where() string {
	if e.cfg.Endpoint.IsFile() {
		return fmt.Sprintf("replica folder %q", e.cfg.Endpoint.Dir)
	}
	return fmt.Sprintf("bucket %q", e.cfg.Bucket)
}

// host is the service's name for messages about reaching it.
func (e explainer) host() string {
	if u, err := url.Parse(e.cfg.Endpoint.URL); err == nil && u.Host != "" {
		return u.Host
	}
	return "Amazon S3"
}

// folder explains an error of the operating system about a local replica.
func (e explainer) folder() (Problem, bool) {
	var pathErr *fs.PathError
	if !e.cfg.Endpoint.IsFile() || !errors.As(e.err, &pathErr) {
		return Problem{}, false
	}
	return Problem{ClassFolder, fmt.Sprintf("%s: cannot %s %s: %v", e.where(), pathErr.Op, pathErr.Path, pathErr.Err), true}, true
}

// keyless explains that there are no keys to sign with. It comes before the answers of
// services: the answer may be that of the service that should have given the keys.
func (e explainer) keyless() (Problem, bool) {
	if !errors.Is(e.err, errNoCredentials) || errors.Is(e.err, context.Canceled) {
		return Problem{}, false
	}
	says := "no keys for " + e.where() + ": set --access-key-id and --secret-access-key"
	if a := answerIn(e.err); a.code != "" {
		says += fmt.Sprintf(" (the AWS_ settings were tried: %s)", shortCode(a.code))
	}
	return Problem{ClassNoKeys, says, false}, true
}

// lookup explains an error of the name server. It comes before timeouts, because a slow
// lookup does not mean that the service is slow.
func (e explainer) lookup() (Problem, bool) {
	var dns *net.DNSError
	at := e.where() + " can't be reached: "
	switch {
	case !errors.As(e.err, &dns):
		return Problem{}, false
	case dns.IsNotFound:
		return Problem{ClassDNS, at + fmt.Sprintf("there is no host %q (DNS)", dns.Name), true}, true
	}
	return Problem{ClassDNS, at + fmt.Sprintf("the name server did not resolve %q", dns.Name), true}, true
}

// local explains errors of this side: our own disk, our own deadline.
func (e explainer) local() (Problem, bool) {
	switch {
	case errors.Is(e.err, syscall.ENOSPC), errors.Is(e.err, syscall.EDQUOT):
		return Problem{ClassDisk, "the local disk is full: replication waits until space is freed", true}, true
	case errors.Is(e.err, errStalled):
		return Problem{ClassTimeout, fmt.Sprintf("%s at %s sent %v", e.where(), e.host(), errStalled), true}, true
	case errors.Is(e.err, context.DeadlineExceeded):
		return Problem{ClassTimeout, fmt.Sprintf("%s at %s did not answer in time", e.where(), e.host()), true}, true
	case errors.Is(e.err, context.Canceled):
		return Problem{ClassCanceled, "canceled", true}, true
	}
	return Problem{}, false
}

// secured explains what went wrong with TLS.
func (e explainer) secured() (Problem, bool) {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		record   tls.RecordHeaderError
		verify   *tls.CertificateVerificationError
		op       *net.OpError
	)
	says := func(s string) (Problem, bool) {
		return Problem{ClassTLS, fmt.Sprintf("%s: %s %s", e.where(), e.host(), s), false}, true
	}
	switch {
	case errors.As(e.err, &unknown):
		return says("has a certificate of an unknown authority: put its CA into the image and name the file in SSL_CERT_FILE")
	case errors.As(e.err, &hostname):
		return says("has a certificate for another host name")
	case errors.As(e.err, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil:
		now, from, to := time.Now().UTC(), invalid.Cert.NotBefore.UTC(), invalid.Cert.NotAfter.UTC()
		if now.Before(from) {
			return says(fmt.Sprintf("has a certificate that begins at %s, and by this machine's clock it is %s", stamp(from), stamp(now)))
		}
		return says(fmt.Sprintf("has a certificate that ended at %s, and by this machine's clock it is %s", stamp(to), stamp(now)))
	case errors.As(e.err, &invalid):
		return says("has an invalid certificate: " + oneLine(invalid.Error()))
	case errors.As(e.err, &verify):
		return says("has a certificate that can't be verified: " + oneLine(verify.Err.Error()))
	case errors.As(e.err, &record), errors.Is(e.err, http.ErrSchemeMismatch):
		return says("does not speak TLS on this port: write the endpoint with http://, or use the TLS port")
	case errors.As(e.err, &op) && (op.Op == "remote error" || op.Op == "local error"):
		// How crypto/tls marks an alert; it has no type for it.
		return says("and this client can't agree on TLS: " + oneLine(strings.TrimPrefix(op.Err.Error(), "tls: ")))
	case notHTTP(e.err) == tlsRecord:
		return says("wants TLS on this port: write the endpoint with https://")
	}
	return Problem{}, false
}

func stamp(t time.Time) string { return t.Format("2006-01-02 15:04 UTC") }

// network explains why the service could not be reached.
func (e explainer) network() (Problem, bool) {
	var op *net.OpError
	at := e.where() + " can't be reached: "
	switch {
	case errors.Is(e.err, syscall.ECONNREFUSED):
		return Problem{ClassRefused, at + fmt.Sprintf("nothing listens at %s (connection refused)", e.host()), true}, true
	case errors.Is(e.err, os.ErrDeadlineExceeded), isTimeout(e.err):
		return Problem{ClassTimeout, at + fmt.Sprintf("%s does not answer (timeout)", e.host()), true}, true
	case isCut(e.err):
		return Problem{ClassNetwork, at + fmt.Sprintf("%s broke the connection off", e.host()), true}, true
	case notHTTP(e.err) != "":
		return Problem{ClassEndpoint, fmt.Sprintf("what answers at %s for %s does not speak HTTP: check --endpoint", e.host(), e.where()), true}, true
	case errors.As(e.err, &op):
		return Problem{ClassNetwork, at + oneLine(op.Err.Error()), true}, true
	}
	var sent *url.Error
	if errors.As(e.err, &sent) {
		return Problem{ClassNetwork, at + oneLine(sent.Err.Error()), true}, true
	}
	return Problem{}, false
}

// isCut reports whether a connection ended before the answer did. An "unexpected EOF"
// counts only if it comes from a request or from the SDK's reading: others may come from a
// damaged file.
func isCut(err error) bool {
	var sent *url.Error
	var read *smithy.DeserializationError
	if (errors.As(err, &sent) || errors.As(err, &read)) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return true
	}
	return errors.Is(err, errCut) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// tlsRecord is the beginning of an alert, as net/http quotes it. A TLS server sends one to
// a client that does not speak TLS.
const tlsRecord = `\x15\x03`

// notHTTP returns the beginning of an answer that is not HTTP, as net/http quotes it,
// which has no type for a bad first line.
func notHTTP(err error) string {
	var sent *url.Error
	var header textproto.ProtocolError
	if errors.As(err, &header) {
		return "?"
	}
	if !errors.As(err, &sent) {
		return ""
	}
	_, line, found := strings.Cut(sent.Err.Error(), "malformed HTTP ")
	if !found {
		return ""
	}
	_, line, _ = strings.Cut(line, `"`)
	if strings.HasPrefix(line, tlsRecord) {
		return tlsRecord
	}
	return "?" + line
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

// oneLine makes the words of others short and printable.
func oneLine(s string) string {
	const most = 300
	if len(s) > 8*most {
		s = s[:8*most]
	}
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}
