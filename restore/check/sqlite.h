// The part of SQLite's C interface that windows.c uses, as its documentation has
// it (https://www.sqlite.org/c3ref/vfs.html, .../io_methods.html). The header that
// belongs to the library lies in another module, where C can't include it; SQLite
// promises to keep this interface, and says by iVersion what it has added.
#include <stdint.h>

typedef int64_t sqlite3_int64;
typedef struct sqlite3_file sqlite3_file;
typedef struct sqlite3_vfs sqlite3_vfs;

enum { SQLITE_OK = 0, SQLITE_ERROR = 1, SQLITE_OPEN_MAIN_DB = 0x100 };

typedef struct sqlite3_io_methods {
	int iVersion;
	int (*xClose)(sqlite3_file *);
	int (*xRead)(sqlite3_file *, void *, int amount, sqlite3_int64 offset);
	int (*xWrite)(sqlite3_file *, const void *, int amount, sqlite3_int64 offset);
	int (*xTruncate)(sqlite3_file *, sqlite3_int64 size);
	int (*xSync)(sqlite3_file *, int flags);
	int (*xFileSize)(sqlite3_file *, sqlite3_int64 *size);
	int (*xLock)(sqlite3_file *, int);
	int (*xUnlock)(sqlite3_file *, int);
	int (*xCheckReservedLock)(sqlite3_file *, int *);
	int (*xFileControl)(sqlite3_file *, int op, void *);
	int (*xSectorSize)(sqlite3_file *);
	int (*xDeviceCharacteristics)(sqlite3_file *);
	// Version 2.
	int (*xShmMap)(sqlite3_file *, int, int, int, void volatile **);
	int (*xShmLock)(sqlite3_file *, int, int, int);
	void (*xShmBarrier)(sqlite3_file *);
	int (*xShmUnmap)(sqlite3_file *, int);
	// Version 3.
	int (*xFetch)(sqlite3_file *, sqlite3_int64 offset, int amount, void **page);
	int (*xUnfetch)(sqlite3_file *, sqlite3_int64 offset, void *page);
} sqlite3_io_methods;

struct sqlite3_file {
	const sqlite3_io_methods *pMethods;
};

struct sqlite3_vfs {
	int iVersion;
	int szOsFile;
	int mxPathname;
	sqlite3_vfs *pNext;
	const char *zName;
	void *pAppData;
	int (*xOpen)(sqlite3_vfs *, const char *name, sqlite3_file *, int flags, int *outFlags);
	int (*xDelete)(sqlite3_vfs *, const char *name, int syncDir);
	int (*xAccess)(sqlite3_vfs *, const char *name, int flags, int *out);
	int (*xFullPathname)(sqlite3_vfs *, const char *name, int size, char *out);
	void *(*xDlOpen)(sqlite3_vfs *, const char *name);
	void (*xDlError)(sqlite3_vfs *, int size, char *message);
	void (*(*xDlSym)(sqlite3_vfs *, void *, const char *symbol))(void);
	void (*xDlClose)(sqlite3_vfs *, void *);
	int (*xRandomness)(sqlite3_vfs *, int size, char *out);
	int (*xSleep)(sqlite3_vfs *, int microseconds);
	int (*xCurrentTime)(sqlite3_vfs *, double *);
	int (*xGetLastError)(sqlite3_vfs *, int, char *);
	// Version 2.
	int (*xCurrentTimeInt64)(sqlite3_vfs *, sqlite3_int64 *);
	// Version 3.
	int (*xSetSystemCall)(sqlite3_vfs *, const char *name, void (*)(void));
	void (*(*xGetSystemCall)(sqlite3_vfs *, const char *name))(void);
	const char *(*xNextSystemCall)(sqlite3_vfs *, const char *name);
};

// Weak, so that cgo may link this package alone to look at it; the library is in
// every program that has the package.
extern __attribute__((weak)) sqlite3_vfs *sqlite3_vfs_find(const char *name);
extern __attribute__((weak)) int sqlite3_vfs_register(sqlite3_vfs *, int makeDefault);
extern __attribute__((weak)) sqlite3_int64 sqlite3_uri_int64(const char *name, const char *parameter, sqlite3_int64 otherwise);
