// SPDX-License-Identifier: GPL-2.0
/* Mistakes on purpose, in C, one for each detector of the debug kernel: what none of them would notice, no test would. */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/vmalloc.h>

static char *bug = "";
module_param(bug, charp, 0444);

static DEFINE_SPINLOCK(spin);
static void *volatile kept;

static int __init planted_init(void)
{
	if (!strcmp(bug, "beyond")) {
		volatile char *memory = kmalloc(32, GFP_KERNEL);

		if (memory)
			memory[40] = 1;
		kfree((void *)memory);
	} else if (!strcmp(bug, "beyond-pages")) {
		volatile char *memory = vmalloc(100);

		if (memory)
			memory[101] = 1;
		vfree((void *)memory);
	} else if (!strcmp(bug, "freed")) {
		volatile char *memory = kmalloc(32, GFP_KERNEL);

		kfree((void *)memory);
		if (memory)
			memory[3] = 1;
	} else if (!strcmp(bug, "sleep")) {
		spin_lock(&spin);
		might_sleep();
		spin_unlock(&spin);
	} else if (!strcmp(bug, "leak")) {
		int i;

		/* Some are found through what registers and stacks still hold, so one would not be enough. */
		for (i = 0; i < 64; i++) {
			kept = kzalloc(48, GFP_KERNEL);
			if (kept)
				strscpy((char *)kept, "planted in C", 48);
		}
		kept = NULL;
	}
	return -ENODEV;
}
module_init(planted_init);

MODULE_DESCRIPTION("Mistakes on purpose");
MODULE_LICENSE("GPL");
