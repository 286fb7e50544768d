// Command guestbook is the sample app: a small web app that keeps its entries
// in one SQLite file and knows nothing of backups. The demo and the tests run it
// under slasha-init.
//
//	guestbook serve  --db PATH [--addr :8080]     the web app
//	guestbook worker --db PATH [--every 1s] [--count N]  writes entries on its own
//
// The worker prints "ack N" on stdout when the commit of its entry N has
// returned, and with --stamp the time of that: what was acknowledged must never
// be lost. With --chain each entry says which one was the newest when it was
// written, so that two histories can't be mixed unseen.
package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"html"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	_ "github.com/mattn/go-sqlite3"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("guestbook: ")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code, err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		log.Print(err)
		code = 1
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string) (code int, err error) {
	if len(args) == 0 {
		return 0, errors.New("usage: guestbook serve|worker --db PATH")
	}
	fs := flag.NewFlagSet("guestbook "+args[0], flag.ContinueOnError)
	path := fs.String("db", "", "path of the SQLite file")
	addr := fs.String("addr", ":8080", "serve: address to listen on")
	every := fs.Duration("every", time.Second, "worker: pause between two entries; 0 for none")
	count := fs.Int("count", 0, "worker: end after so many entries; 0 for never")
	size := fs.Int("size", 100, "worker: bytes of text in an entry")
	random := fs.Bool("random", false, "worker: text that can't be packed")
	keep := fs.Int("keep", 0, "worker: forget all but the newest so many entries; 0 forgets none")
	burst := fs.Int("burst", 1, "worker: entries between two pauses")
	stamp := fs.Bool("stamp", false, "worker: print when each commit had returned")
	name := fs.String("name", "", "worker: sign the entries with this and the process id, and print that with each ack")
	chain := fs.Bool("chain", false, "worker: note in each entry which one was the newest before it; of a new database")
	stmt := fs.String("sql", "", "worker: a statement to run now and then, like VACUUM; its outcome is printed")
	stmtAfter := fs.Int("sql-after", 50, "worker: entries between two runs of --sql")
	persist := fs.Bool("persist", false, "worker: print why an entry could not be written, and try again, instead of ending")
	hold := fs.Bool("hold", false, "worker: keep a read transaction open as long as it runs")
	exit := fs.Int("exit", 0, "worker: exit code at the end")
	late := fs.Duration("late", 0, "make an empty file first, and the database in it only after this time")
	pageSize := fs.Int("page-size", 0, "page size of a new database, in bytes; 0 is SQLite's choice")
	if err := fs.Parse(args[1:]); err != nil {
		return 0, err
	}
	if *path == "" {
		return 0, errors.New("--db is missing")
	}
	if *late > 0 {
		if err := os.WriteFile(*path, nil, 0o600); err != nil {
			return 0, err
		}
		<-time.After(*late)
	}
	book, err := open(ctx, *path, *pageSize, *chain)
	if err != nil {
		return 0, err
	}
	defer func() { _ = book.Close() }()
	switch args[0] {
	case "serve":
		return 0, book.serve(ctx, *addr)
	case "worker":
		if *hold {
			release, err := book.hold(ctx)
			if err != nil {
				return 0, err
			}
			defer release()
		}
		return *exit, book.work(ctx, task{
			every: *every, count: *count, burst: *burst, size: *size, random: *random, keep: *keep,
			name: *name, chain: *chain, stamp: *stamp, stmt: *stmt, stmtAfter: *stmtAfter, persist: *persist,
		})
	}
	return 0, fmt.Errorf("unknown command %q", args[0])
}

// guestbook is the entries in a SQLite file.
type guestbook struct{ *sql.DB }

type entry struct {
	ID   int64  `json:"id"`
	Name string `json:"name"`
	Text string `json:"text"`
	At   string `json:"at"`
}

func open(ctx context.Context, path string, pageSize int, chain bool) (*guestbook, error) {
	if pageSize > 0 {
		if err := create(ctx, path, pageSize); err != nil {
			return nil, err
		}
	}
	db, err := sql.Open("sqlite3", "file:"+path+"?_journal_mode=WAL&_synchronous=NORMAL&_busy_timeout=5000&_txlock=immediate")
	if err != nil {
		return nil, err
	}
	prev := ""
	if chain {
		prev = ", prev TEXT NOT NULL"
	}
	_, err = db.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS entries (
		id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, text TEXT NOT NULL, at TEXT NOT NULL`+prev+`)`)
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return &guestbook{db}, nil
}

// create makes a database with a page size of its own, which only a new one can
// have.
func create(ctx context.Context, path string, pageSize int) error {
	db, err := sql.Open("sqlite3", "file:"+path)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	db.SetMaxOpenConns(1)
	for _, stmt := range []string{fmt.Sprintf("PRAGMA page_size = %d", pageSize), "PRAGMA encoding = 'UTF-16le'", "CREATE TABLE made (here)"} {
		if _, err := db.ExecContext(ctx, stmt); err != nil {
			return err
		}
	}
	return nil
}

func (g *guestbook) add(ctx context.Context, name, text string) (int64, error) {
	res, err := g.ExecContext(ctx, "INSERT INTO entries (name, text, at) VALUES (?, ?, ?)",
		name, text, time.Now().UTC().Format(time.RFC3339Nano))
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

// addToChain adds an entry with the name and the time of the newest.
func (g *guestbook) addToChain(ctx context.Context, name, text string) (int64, error) {
	res, err := g.ExecContext(ctx, `INSERT INTO entries (name, text, at, prev)
		VALUES (?, ?, ?, coalesce((SELECT name || ' ' || at FROM entries ORDER BY id DESC LIMIT 1), ''))`,
		name, text, time.Now().UTC().Format(time.RFC3339Nano))
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

func (g *guestbook) count(ctx context.Context) (n int64, err error) {
	err = g.QueryRowContext(ctx, "SELECT count(*) FROM entries").Scan(&n)
	return n, err
}

func (g *guestbook) list(ctx context.Context, most int) ([]entry, error) {
	rows, err := g.QueryContext(ctx, "SELECT id, name, text, at FROM entries ORDER BY id DESC LIMIT ?", most)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	entries := []entry{}
	for rows.Next() {
		var e entry
		if err := rows.Scan(&e.ID, &e.Name, &e.Text, &e.At); err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, rows.Err()
}

// task is what a worker is to write.
type task struct {
	every       time.Duration
	count, size int
	burst       int
	random      bool
	keep        int
	name        string
	chain       bool
	stamp       bool
	stmt        string
	stmtAfter   int
	persist     bool
}

// work writes entries until ctx ends.
func (g *guestbook) work(ctx context.Context, t task) error {
	text := strings.Repeat("x", t.size)
	name, signed := "worker", ""
	if t.name != "" {
		name = fmt.Sprintf("%s.%d", t.name, os.Getpid())
		signed = " " + name
	}
	add := g.add
	if t.chain {
		add = g.addToChain
	}
	for n := 1; t.count == 0 || n <= t.count; n++ {
		if t.random {
			b := make([]byte, t.size/2)
			_, _ = rand.Read(b) // never fails
			text = hex.EncodeToString(b)
		}
		id, err := add(ctx, name, text)
		if err == nil && t.keep > 0 {
			_, err = g.ExecContext(ctx, "DELETE FROM entries WHERE id <= ?", id-int64(t.keep))
		}
		switch {
		case errors.Is(err, context.Canceled):
			return nil
		case err != nil && t.persist:
			fmt.Println("refused:", err)
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(max(t.every, 10*time.Millisecond)):
			}
			continue
		case err != nil:
			return err
		}
		if t.stamp {
			fmt.Println("ack", id, time.Now().UTC().Format(time.RFC3339Nano)+signed)
		} else {
			fmt.Println("ack", id)
		}
		if t.stmt != "" && n%t.stmtAfter == 0 {
			fmt.Println("sql:", g.outcome(ctx, t.stmt))
		}
		if t.every > 0 && n%t.burst == 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(t.every):
			}
		}
	}
	return nil
}

// outcome runs a statement and returns its first row, or its error.
func (g *guestbook) outcome(ctx context.Context, stmt string) string {
	rows, err := g.QueryContext(ctx, stmt)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = rows.Close() }()
	columns, err := rows.Columns()
	if err != nil {
		return err.Error()
	}
	values, to := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		to[i] = &values[i]
	}
	if rows.Next() {
		if err := rows.Scan(to...); err != nil {
			return err.Error()
		}
	}
	if err := rows.Err(); err != nil {
		return err.Error()
	}
	return strings.TrimSpace(fmt.Sprintln(append([]any{"done"}, values...)...))
}

// hold begins a read transaction that sees the entries of now until release is
// called.
func (g *guestbook) hold(ctx context.Context) (release func(), err error) {
	conn, err := g.Conn(ctx)
	if err != nil {
		return nil, err
	}
	var n int64
	if _, err = conn.ExecContext(ctx, "BEGIN"); err == nil {
		err = conn.QueryRowContext(ctx, "SELECT count(*) FROM entries").Scan(&n)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("begin to read: %w", err)
	}
	return func() { _ = conn.Close() }, nil
}

// serve answers on addr until ctx ends, and then finishes what it is doing.
func (g *guestbook) serve(ctx context.Context, addr string) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening on", listener.Addr())
	srv := &http.Server{Handler: g.handler(), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		late, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		_ = srv.Shutdown(late)
	}()
	if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (g *guestbook) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		entries, err := g.list(r.Context(), 100)
		if fail(w, err) {
			return
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, page(entries))
	})
	mux.HandleFunc("GET /entries", func(w http.ResponseWriter, r *http.Request) {
		entries, err := g.list(r.Context(), 1000)
		if fail(w, err) {
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(entries)
	})
	mux.HandleFunc("POST /entries", func(w http.ResponseWriter, r *http.Request) {
		r.Body = http.MaxBytesReader(w, r.Body, 1<<20)
		id, err := g.add(r.Context(), r.FormValue("name"), r.FormValue("text"))
		if fail(w, err) {
			return
		}
		if strings.Contains(r.Header.Get("Accept"), "text/html") {
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
		w.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprintln(w, id)
	})
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, r *http.Request) {
		n, err := g.count(r.Context())
		if fail(w, err) {
			return
		}
		_, _ = fmt.Fprintln(w, n)
	})
	return mux
}

func fail(w http.ResponseWriter, err error) bool {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
	return err != nil
}

func page(entries []entry) string {
	var b strings.Builder
	b.WriteString(`<!doctype html><html lang="en"><meta charset="utf-8"><title>Guestbook</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:3rem auto;padding:0 1rem}
input{font:inherit;padding:.3rem}li{margin:.5rem 0}</style>
<h1>Guestbook</h1>
<form method="post" action="/entries"><input name="name" placeholder="Your name" required>
<input name="text" placeholder="A line" required> <button>Sign</button></form><ul>`)
	for _, e := range entries {
		fmt.Fprintf(&b, "<li><b>%s</b>: %s</li>", html.EscapeString(e.Name), html.EscapeString(e.Text))
	}
	b.WriteString("</ul></html>\n")
	return b.String()
}
