package config

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/slashacom/slasha-init/internal/text"
	"github.com/slashacom/slasha-init/replica/storage"
	"github.com/slashacom/slasha-init/volume"
)

// The readers of this file say where things are: the database, its replica, the socket,
// the health page.

func readDBPath(r *reading, g given) {
	if g.text == "" || r.asksPage() {
		return
	}
	path := g.text
	switch {
	case strings.ContainsFunc(path, isControl):
		r.wrong(g, "holds a control character")
	case !filepath.IsAbs(path):
		r.wrong(g, "must be absolute, like /data/app.db")
	case strings.HasSuffix(path, "/") || filepath.Base(filepath.Clean(path)) == "/":
		r.wrong(g, "names a folder; name the database file in it, like /data/app.db")
	case filepath.Clean(path) != path:
		r.wrong(g, "holds . or .. or a double slash; write it as "+text.Quote(filepath.Clean(path)))
	default:
		real, err := behindLink(path)
		if err != nil {
			r.wrong(g, err.Error())
			break
		}
		if fi, err := os.Stat(real); err == nil && !fi.Mode().IsRegular() {
			r.wrong(g, "is a folder or a device, not a file; name the database file, like /data/app.db")
		}
		path = real
	}
	r.cfg.Databases = []string{path}
}

// behindLink returns the file that a path is a symbolic link to, whether it is
// there or not: SQLite keeps the -wal beside that file, and a restore must not
// put a file in the place of the link.
func behindLink(path string) (string, error) {
	const most = 40 // as the kernel has it
	for range most {
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil //nolint:nilerr // not a link
		}
		if !filepath.IsAbs(to) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path)) // .. counts from there
			if err != nil {
				return "", fmt.Errorf("is a symbolic link that can't be followed: %w", err)
			}
			to = filepath.Join(dir, to)
		}
		path = filepath.Clean(to)
	}
	return "", errors.New("is a symbolic link that leads to itself")
}

// readOutput reads the file that the restore command makes: the database's by default.
func readOutput(r *reading, g given) {
	switch {
	case g.text == "":
		if r.cfg.Enabled() {
			r.cfg.Ask.Output = r.cfg.Databases[0]
		}
		return
	case strings.ContainsFunc(g.text, isControl) || strings.HasSuffix(g.text, "/"):
		r.wrong(g, "must name a file")
	}
	r.cfg.Ask.Output = g.text
}

// readControlSocket reads where the socket is. By default it is in our folder beside
// the database, so without a database there is none.
func readControlSocket(r *reading, g given) {
	if r.asksPage() {
		return
	}
	switch {
	case g.text == "off":
		return
	case g.text == "":
		if r.cfg.Enabled() {
			r.cfg.ControlSocket = volume.FolderOf(r.cfg.Databases[0]).ControlSocket()
		}
		return
	case strings.ContainsFunc(g.text, isControl):
		r.wrong(g, "holds a control character")
	case !filepath.IsAbs(g.text) || strings.HasSuffix(g.text, "/"):
		r.wrong(g, "must be the absolute path of a socket, like /run/slasha.sock, or off")
	default:
		if fi, err := os.Stat(filepath.Dir(g.text)); err != nil || !fi.IsDir() {
			r.wrong(g, "is in a folder that is not there; make it, or leave the setting out")
		}
	}
	r.cfg.ControlSocket = filepath.Clean(g.text)
}

func readHealthAddr(r *reading, g given) {
	addr, want := healthAddr(g.text)
	if want != "" {
		r.wrong(g, want)
	}
	r.cfg.Health.Addr = addr
}

// healthAddr returns the address, or "" for none, and what is wrong with it.
func healthAddr(value string) (addr, want string) {
	if value == "off" {
		return "", ""
	}
	host, port, err := net.SplitHostPort(value)
	if err != nil || strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return "", "is not an address; write host:port like 127.0.0.1:9180, or :9180 for all interfaces, or off"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return value, "has a port outside 0 to 65535"
	}
	return value, ""
}

// asksPage reports whether the command asks the health page of a container. Then it
// need not know the socket, nor the database that the socket is beside.
func (r *reading) asksPage() bool {
	addr, _ := healthAddr(r.get("health-addr").text)
	return (r.command == "healthcheck" || r.command == "status") && !Health{Addr: addr}.Pageless()
}

func readBucket(r *reading, g given) {
	switch {
	case g.text == "":
	case strings.Contains(g.text, "/"):
		r.wrong(g, "must be the name alone, without s3:// and without a folder; the folder belongs in --path-prefix")
	case !isBucketName(g.text):
		r.wrong(g, "is not a bucket name: 3 to 255 letters, digits, dots and hyphens")
	}
	r.cfg.Replica.Storage.Bucket = g.text
}

const (
	lowercase = "abcdefghijklmnopqrstuvwxyz0123456789"
	anyCase   = lowercase + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// isBucketName follows the rules of all providers together, not only those of S3 today.
func isBucketName(name string) bool {
	return len(name) >= 3 && len(name) <= 255 && strings.Trim(name, anyCase+"._-") == "" &&
		strings.Trim(name[:1]+name[len(name)-1:], anyCase) == "" && !strings.Contains(name, "..")
}

func readEndpoint(r *reading, g given) {
	endpoint, err := storage.ParseEndpoint(g.text, r.get("bucket").text)
	if err != nil {
		if strings.ContainsAny(g.text, "@?#") {
			g.text = "" // may hold a password
		}
		r.wrong(g, err.Error())
	}
	r.cfg.Replica.Storage.Endpoint = endpoint
}

// key reads half of a key. It is stored even where backups are off, because it is still a
// secret to keep out of the log.
func key(to func(*Config) *string) reader {
	return func(r *reading, g given) {
		if r.backups() && strings.ContainsFunc(g.text, func(r rune) bool { return r <= ' ' || r > '~' }) {
			r.wrong(g, "holds a space, a line break or another character that no key has (not shown)")
		}
		*to(&r.cfg) = g.text
	}
}

func readPrefix(r *reading, g given) {
	if !r.backups() {
		return
	}
	prefix := strings.Trim(g.text, "/")
	switch {
	case prefix == "":
		r.wrong(g, "must name a folder, like "+text.Quote("litestream"))
	case strings.ContainsFunc(prefix, isControl) || strings.Contains(prefix, `\`):
		r.wrong(g, "holds a control character or a backslash")
	case len(prefix) > 512:
		r.wrong(g, "is longer than 512 bytes")
	}
	for _, part := range strings.Split(prefix, "/") {
		if prefix != "" && (part == "" || part == "." || part == "..") {
			r.wrong(g, "holds . or .. or a double slash; write it like apps/shop")
			break
		}
	}
	r.cfg.Replica.Storage.Prefix = prefix
}

func readRegion(r *reading, g given) {
	if !r.backups() {
		return
	}
	if g.text != "" && !isRegionName(g.text) {
		r.wrong(g, "is not a region; write it like eu-central-1, or leave it out to ask the server")
	}
	r.cfg.Replica.Storage.Region = g.text
}

func isRegionName(name string) bool {
	return len(name) >= 2 && len(name) <= 64 && strings.Trim(name, lowercase+"-") == ""
}
