// SPDX-License-Identifier: GPL-2.0
/* Mistakes on purpose, one for each detector of the debug kernel: a test that none of them would notice proves nothing. */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static char *bug = "";
module_param(bug, charp, 0444);

static DEFINE_MUTEX(one);
static DEFINE_MUTEX(other);
static DEFINE_SPINLOCK(spin);
static void *volatile kept;

static int __init planted_init(void)
{
	if (!strcmp(bug, "beyond")) {
		volatile char *memory = kmalloc(32, GFP_KERNEL);

		if (memory)
			memory[40] = 1;
		kfree((void *)memory);
	} else if (!strcmp(bug, "order")) {
		mutex_lock(&one);
		mutex_lock(&other);
		mutex_unlock(&other);
		mutex_unlock(&one);
		mutex_lock(&other);
		mutex_lock(&one);
		mutex_unlock(&one);
		mutex_unlock(&other);
	} else if (!strcmp(bug, "sleep")) {
		spin_lock(&spin);
		might_sleep();
		spin_unlock(&spin);
	} else if (!strcmp(bug, "leak")) {
		int i;

		/* Some are found through what registers and stacks still hold, so one would not be enough. */
		for (i = 0; i < 64; i++)
			kept = kmalloc(48, GFP_KERNEL);
		kept = NULL;
	}
	return -ENODEV;
}
module_init(planted_init);

MODULE_DESCRIPTION("Mistakes on purpose");
MODULE_LICENSE("GPL");
