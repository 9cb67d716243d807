// SPDX-License-Identifier: GPL-2.0
/* An instance's VRAM as a region of the dmem cgroup controller; nothing where the kernel has none. */
#include <linux/cgroup_dmem.h>
#include <linux/err.h>

#include "emuv_shim.h"

void *emuv_c_dmem_add(const char *name, u64 bytes)
{
	struct dmem_cgroup_init init = { .size = bytes };

	return dmem_cgroup_register_region(&init, "emuv/%s", name);
}

void emuv_c_dmem_del(void *region)
{
	dmem_cgroup_unregister_region(region);
}

int emuv_c_dmem_charge(void *region, u64 bytes, void **pool)
{
	struct dmem_cgroup_pool_state *charged = NULL;
	int error = dmem_cgroup_try_charge(region, bytes, &charged, NULL);

	*pool = charged;
	return error;
}

void emuv_c_dmem_uncharge(void *pool, u64 bytes)
{
	dmem_cgroup_uncharge(pool, bytes);
}
