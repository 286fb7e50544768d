// What windows.c offers to Go. See there.
#include <stdint.h>

#define SLASHA_WINDOWS "slasha-windows"

int slasha_windows_register(void);
