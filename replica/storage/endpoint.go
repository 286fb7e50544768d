package storage

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/benbjohnson/litestream"
)

// Endpoint is where a replica lives, as a person wrote it, taken apart. The
// zero value is Amazon S3 in a region that the server will name.
type Endpoint struct {
	// Dir is set for file:///dir: the replica is a local folder, and the
	// other fields are empty.
	Dir string

	// URL is the base URL of an S3-compatible service, without a trailing
	// slash. Empty means Amazon S3 itself, whose host follows from the region.
	URL string

	// Region is the region in the host name, or empty if it has none. It is a hint: the
	// server's own answer overrides it.
	Region string
}

// IsFile reports whether the replica is a local folder.
func (e Endpoint) IsFile() bool { return e.Dir != "" }

// secure reports whether requests to the endpoint travel over TLS.
func (e Endpoint) secure() bool { return !e.IsFile() && !strings.HasPrefix(e.URL, "http://") }

// The places of the region in the providers' host names. Sources: the providers' own lists
// of endpoints; the same hosts as in Litestream's s3.ParseHost. The patterns are compiled
// when they are needed, and not at every start.
var (
	awsHost          = lazily(`^s3[.-]([a-z]{2}(?:-[a-z0-9]+)+-\d+)\.amazonaws\.com$`)
	awsDualstackHost = lazily(`^s3(?:-fips)?(?:\.dualstack)?\.([a-z]{2}(?:-[a-z0-9]+)+-\d+)\.amazonaws\.com(?:\.cn)?$`)
	regionHosts      = []func() *regexp.Regexp{
		lazily(`^([a-z0-9-]+)\.digitaloceanspaces\.com$`),
		lazily(`^s3\.([a-z0-9-]+)\.backblazeb2\.com$`),
		lazily(`^s3\.([a-z0-9-]+)\.scw\.cloud$`),
		lazily(`^s3\.([a-z0-9-]+)\.wasabisys\.com$`),
		lazily(`^([a-z0-9-]+)\.your-objectstorage\.com$`),
		lazily(`^([a-z0-9-]+)\.linodeobjects\.com$`),
		lazily(`^s3\.([a-z0-9-]+)\.io\.cloud\.ovh\.(?:net|us)$`),
	}
)

func lazily(pattern string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(pattern) })
}

// ParseEndpoint takes apart an endpoint as people write it: with or without a scheme, with
// the bucket in front of the host or behind it (as provider consoles show it), or
// file:///dir. It needs bucket to recognise it in an endpoint; for a local folder bucket may
// be empty. Errors say what would be right and never repeat the value, which may hold a
// password.
func ParseEndpoint(s, bucket string) (Endpoint, error) {
	if s == "" {
		return Endpoint{}, nil
	}
	if i := strings.IndexFunc(s, isControlOrSpace); i >= 0 {
		return Endpoint{}, errors.New("holds a space or a control character; write only the address, like https://s3.example.com")
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok && strings.EqualFold(scheme, "file") {
		return parseFileEndpoint(s)
	}
	raw := s
	if !strings.Contains(s, "://") {
		raw, _ = litestream.EnsureEndpointScheme(s)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return Endpoint{}, errors.New("is not a URL; write it like https://s3.example.com or http://127.0.0.1:9000")
	}
	u.Scheme, u.Host = strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return Endpoint{}, fmt.Errorf("has the scheme %q; it must be http, https or file", u.Scheme)
	case u.User != nil:
		return Endpoint{}, errors.New("holds a user name or a password; keys belong in --access-key-id and --secret-access-key")
	case u.RawQuery != "" || u.Fragment != "":
		return Endpoint{}, errors.New("holds a ? or a #; write only scheme, host and port")
	}
	if err := checkHost(u); err != nil {
		return Endpoint{}, err
	}
	if p := strings.Trim(u.Path, "/"); p != "" && p != bucket {
		return Endpoint{}, errors.New("holds a path; the folder inside the bucket belongs in --path-prefix, the bucket in --bucket")
	}

	host := u.Host
	if bucket != "" && isProviderHost(strings.TrimPrefix(host, bucket+".")) {
		host = strings.TrimPrefix(host, bucket+".")
	}
	if host == "s3.amazonaws.com" {
		return Endpoint{}, nil
	}
	if m := awsHost().FindStringSubmatch(host); m != nil {
		return Endpoint{Region: m[1]}, nil
	}
	return Endpoint{URL: u.Scheme + "://" + host, Region: regionOf(host)}, nil
}

// parseFileEndpoint accepts file:///absolute/dir and nothing that only looks like it: in
// file://dir/sub, "dir" is a host.
func parseFileEndpoint(s string) (Endpoint, error) {
	u, err := url.Parse(s)
	if err != nil || (u.Host != "" && u.Host != "localhost") || !strings.HasPrefix(u.Path, "/") || u.RawQuery != "" || u.Fragment != "" {
		return Endpoint{}, errors.New("is not a local folder; write it with three slashes, like file:///backups")
	}
	dir := filepath.Clean(u.Path)
	if dir == "/" {
		return Endpoint{}, errors.New("names the root folder; give the replica a folder of its own, like file:///backups")
	}
	return Endpoint{Dir: dir}, nil
}

func checkHost(u *url.URL) error {
	host := u.Hostname()
	if host == "" {
		return errors.New("has no host; write it like https://s3.example.com")
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return errors.New("has a port outside 1 to 65535")
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return errors.New("ends in a colon; write the port behind it, or leave the colon out")
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	for _, label := range strings.Split(strings.TrimSuffix(host, "."), ".") {
		if !hostLabel().MatchString(label) {
			return errors.New("has a host that is no host name; write it like https://s3.example.com")
		}
	}
	return nil
}

var hostLabel = lazily(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)

// isProviderHost reports whether a bucket may precede host as one more label.
func isProviderHost(host string) bool {
	return host == "s3.amazonaws.com" || awsHost().MatchString(host) || regionOf(host) != ""
}

func regionOf(host string) string {
	if m := awsDualstackHost().FindStringSubmatch(host); m != nil {
		return m[1]
	}
	if litestream.IsCloudflareR2Endpoint("https://" + host) {
		return "auto"
	}
	if litestream.IsTigrisEndpoint("https://" + host) {
		return "auto"
	}
	for _, re := range regionHosts {
		if m := re().FindStringSubmatch(host); m != nil {
			return m[1]
		}
	}
	return ""
}

func isControlOrSpace(r rune) bool { return r <= ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) }
