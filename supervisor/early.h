// What early.c offers to Go. See there.
#include <stdint.h>

// One signal, as it lies in the pipe.
struct slasha_signal {
	int32_t number;
	int32_t code; // si_code of sigaction(2)
};

int slasha_was_ignored(int number);
int slasha_inbox(void);
void slasha_catch(int number);
void slasha_open_mask(void);
void slasha_before_fork(void);
void slasha_after_fork(void);
