// Reads for SQLite's check, many pages at a time.
//
// SQLite reads a database of 1 GiB in half a million system calls of a page each,
// and they take three quarters of the check's time. It can also be given pages in
// place (xFetch), which is meant for memory maps. A map is fast, but it counts as
// our memory, and an I/O error under it is a SIGBUS that would end the process. So
// here stands a copy of a few stretches of the file, windows, filled by ordinary
// reads: small enough together to stay in the processor's cache.
//
// The check goes through a table from its end to its beginning and then once more
// the other way round, mostly over neighbouring pages. Where it does, a window
// opens in its direction; a page that stands alone is left to SQLite, which reads
// it into its own cache.
//
// All this is SQLite's own VFS for files with other answers to four of its
// questions; see https://www.sqlite.org/vfs.html, "shims". The file is only read,
// by one thread at a time.

#include <stdlib.h>
#include <string.h>

#include "_cgo_export.h"
#include "sqlite.h"
#include "windows.h"

enum {
	WINDOWS = 8,
	WINDOW = 64 << 10, // bytes, where that is at least
	PAGES = 8,         // pages
	SLACK = 64,        // bytes behind a window, for a look past the end of a damaged page
	NEAR = 4,          // pages that count as neighbours
	SEEN = 8,          // pages that are remembered
};

struct window {
	sqlite3_int64 from, to; // of the file
	int pins;               // pages that SQLite has
	uint64_t used;          // when, counted in uses
};

struct windows {
	sqlite3_io_methods methods;
	const sqlite3_io_methods *real;
	uint64_t rest; // a handle of Go's, or 0

	sqlite3_int64 size; // of the file
	int page, span;     // bytes of a page and of a window; 0: not known yet
	char *room;         // of the windows, one after the other
	struct window all[WINDOWS];
	int last; // the window that was used last
	uint64_t uses;

	// Pages that were asked for without having a window, and the ends of windows.
	sqlite3_int64 seen[SEEN];
	unsigned next;
};

static sqlite3_vfs *real, ours;

static struct windows *of(sqlite3_file *file)
{
	return (struct windows *)((char *)file + real->szOsFile);
}

static void rest(struct windows *w)
{
	if (w->rest)
		slasha_rest(w->rest);
}

static char *start(struct windows *w, int i)
{
	return w->room + (size_t)i * (w->span + SLACK);
}

// begin makes room for pages of a size. Without it, SQLite reads for itself.
static void begin(struct windows *w, sqlite3_file *file, int page)
{
	w->page = page;
	w->span = page * PAGES > WINDOW ? page * PAGES : WINDOW;
	if (w->real->xFileSize(file, &w->size) == SQLITE_OK)
		w->room = calloc(WINDOWS, w->span + SLACK);
	for (int i = 0; i < SEEN; i++)
		w->seen[i] = -(sqlite3_int64)NEAR * page - 1;
}

static void remember(struct windows *w, sqlite3_int64 offset)
{
	w->seen[w->next++ % SEEN] = offset;
}

static int holds(const struct window *n, sqlite3_int64 offset)
{
	return offset >= n->from && offset < n->to;
}

// find returns the window that has a page, or -1.
static int find(struct windows *w, sqlite3_int64 offset)
{
	if (holds(&w->all[w->last], offset))
		return w->last;
	for (int i = 0; i < WINDOWS; i++)
		if (holds(&w->all[i], offset))
			return i;
	return -1;
}

// direction returns where a walk that has come to a page goes on: 1 up, -1 down, 0
// not known.
static int direction(const struct windows *w, sqlite3_int64 offset)
{
	for (unsigned i = 1; i <= SEEN; i++) { // the newest first
		sqlite3_int64 step = offset - w->seen[(w->next - i) % SEEN];
		if (step > 0 && step <= (sqlite3_int64)NEAR * w->page)
			return 1;
		if (step < 0 && -step <= (sqlite3_int64)NEAR * w->page)
			return -1;
	}
	return 0;
}

// open_at fills the window that was not used for longest with what a walk will ask
// for next, and returns it, or -1.
static int open_at(struct windows *w, sqlite3_file *file, sqlite3_int64 offset)
{
	int up = direction(w, offset), oldest = -1;
	if (!up)
		return -1;
	for (int i = 0; i < WINDOWS; i++)
		if (!w->all[i].pins && (oldest < 0 || w->all[i].used < w->all[oldest].used))
			oldest = i;
	if (oldest < 0)
		return -1;
	struct window n = {0};
	if (up > 0) {
		n.from = offset;
		n.to = offset + w->span < w->size ? offset + w->span : w->size;
	} else {
		n.to = offset + w->page;
		n.from = n.to > w->span ? n.to - w->span : 0;
	}
	w->all[oldest] = (struct window){0};
	if (w->real->xRead(file, start(w, oldest), (int)(n.to - n.from), n.from) != SQLITE_OK)
		return -1; // SQLite will meet it where it is
	w->all[oldest] = n;
	remember(w, up > 0 ? n.to - w->page : n.from);
	return oldest;
}

static int fetch(sqlite3_file *file, sqlite3_int64 offset, int amount, void **page)
{
	struct windows *w = of(file);
	*page = NULL;
	if (!w->page)
		begin(w, file, amount);
	// Only a damaged database refers to a page beyond its end.
	if (!w->room || amount != w->page || offset < 0 || offset % amount || offset + amount > w->size)
		return SQLITE_OK;
	int i = find(w, offset);
	if (i < 0) {
		rest(w);
		i = open_at(w, file, offset);
	}
	if (i < 0) {
		remember(w, offset);
		return SQLITE_OK;
	}
	w->last = i;
	w->all[i].used = ++w->uses;
	w->all[i].pins++;
	*page = start(w, i) + (offset - w->all[i].from);
	return SQLITE_OK;
}

static int unfetch(sqlite3_file *file, sqlite3_int64 offset, void *page)
{
	struct windows *w = of(file);
	(void)offset;
	if (page) // else: the file has changed, which this one does not
		w->all[((char *)page - w->room) / (w->span + SLACK)].pins--;
	return SQLITE_OK;
}

static int read_page(sqlite3_file *file, void *to, int amount, sqlite3_int64 offset)
{
	rest(of(file));
	return of(file)->real->xRead(file, to, amount, offset);
}

static int close_file(sqlite3_file *file)
{
	free(of(file)->room);
	return of(file)->real->xClose(file);
}

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out)
{
	(void)vfs;
	int rc = real->xOpen(real, name, file, flags, out);
	if (rc != SQLITE_OK || !(flags & SQLITE_OPEN_MAIN_DB) || file->pMethods->iVersion < 3)
		return rc;
	struct windows *w = of(file);
	memset(w, 0, sizeof *w);
	w->real = file->pMethods;
	w->rest = (uint64_t)sqlite3_uri_int64(name, "rest", 0);
	w->methods = *w->real;
	w->methods.iVersion = 3; // as much as was copied
	w->methods.xClose = close_file;
	w->methods.xRead = read_page;
	w->methods.xFetch = fetch;
	w->methods.xUnfetch = unfetch;
	file->pMethods = &w->methods;
	return SQLITE_OK;
}

// slasha_windows_register returns 0, or an error of SQLite's.
int slasha_windows_register(void)
{
	real = sqlite3_vfs_find(NULL);
	if (!real || real->iVersion < 3)
		return SQLITE_ERROR;
	ours = *real;
	ours.iVersion = 3;
	ours.zName = SLASHA_WINDOWS;
	ours.szOsFile = real->szOsFile + (int)sizeof(struct windows);
	ours.xOpen = open_file;
	return sqlite3_vfs_register(&ours, 0);
}
