// SPDX-License-Identifier: GPL-2.0
/*
 * What Rust for Linux 7.3 has no abstractions for: a device class with attributes, character devices with poll, parameters that
 * are strings or lists, dmem cgroups, macros of memory management. It carries data; what may be done is decided in Rust.
 */
#include <linux/cdev.h>
#include <linux/cgroup_dmem.h>
#include <linux/device.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched/signal.h>

#include "emuv_shim.h"

#define EMUV_LIST(_name, _c_type, _type, _description) \
	_c_type emuv_##_name[EMUV_INSTANCES]; \
	int emuv_##_name##s; \
	module_param_array_named(_name, emuv_##_name, _type, &emuv_##_name##s, 0444); \
	MODULE_PARM_DESC(_name, _description)
EMUV_LIST(gpu_model, char *, charp, "GPU model, such as 4070; one for all instances or one for each");
EMUV_LIST(physical_vram_gb, unsigned int, uint, "VRAM share of an instance, GB");
EMUV_LIST(virtual_vram_gb, unsigned int, uint, "RAM share of an instance, GB (0 if not given)");
EMUV_LIST(instance_id, unsigned int, uint, "N of /dev/emuvN, one for each instance (0, 1, ... if not given)");
bool emuv_lazy_allocation = true;
module_param_named(lazy_allocation, emuv_lazy_allocation, bool, 0444);
MODULE_PARM_DESC(lazy_allocation, "RAM pages at first touch (default) or all when the instance is made");
bool emuv_debug_mode;
module_param_named(debug_mode, emuv_debug_mode, bool, 0644);
MODULE_PARM_DESC(debug_mode, "Log opens, closes and changes of limits");

static dev_t emuv_devt;

/* ---- /dev/emuvN, and /dev/emuv: text. Rust has the functions (ffi/files.rs) ---- */

/* The owner is what makes unloading with an open file impossible. */
static const struct file_operations emuv_fops = {
	.owner = THIS_MODULE,
	.open = emuv_rs_open,
	.release = emuv_rs_release,
	.llseek = emuv_rs_llseek,
	.read_iter = emuv_rs_read_iter,
	.write_iter = emuv_rs_write_iter,
	.splice_read = copy_splice_read,
	.unlocked_ioctl = emuv_rs_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.poll = emuv_rs_poll,
	.mmap = emuv_rs_mmap,
};

static const struct file_operations emuv_info_fops = {
	.owner = THIS_MODULE,
	.read = emuv_rs_info_read,
	.llseek = default_llseek,
};

/* ---- /sys/class/emuv ---- */

static ssize_t emuv_show(struct device *dev, struct device_attribute *attr, char *page)
{
	struct dev_ext_attribute *which = container_of(attr, struct dev_ext_attribute, attr);

	return emuv_rs_show(dev_get_drvdata(dev), (unsigned long)which->var, page);
}

static ssize_t emuv_store(struct device *dev, struct device_attribute *attr, const char *text, size_t length)
{
	struct dev_ext_attribute *which = container_of(attr, struct dev_ext_attribute, attr);

	return emuv_rs_store(dev_get_drvdata(dev), (unsigned long)which->var, text, length);
}

#define EMUV_ATTRIBUTE(_name, _mode, _store) \
	static struct dev_ext_attribute emuv_attr_##_name = { \
		__ATTR(_name, _mode, emuv_show, _store), (void *)EMUV_ATTRIBUTE_##_name \
	};
#define EMUV_RO(_name) EMUV_ATTRIBUTE(_name, 0444, NULL)
#define EMUV_RW(_name) EMUV_ATTRIBUTE(_name, 0644, emuv_store)
EMUV_ATTRIBUTES(EMUV_RO, EMUV_RW)

#define EMUV_ENTRY(_name) &emuv_attr_##_name.attr.attr,
static struct attribute *emuv_attrs[] = { EMUV_ATTRIBUTES(EMUV_ENTRY, EMUV_ENTRY) NULL };
ATTRIBUTE_GROUPS(emuv);

/* A node is the right to a slice: nobody's but root's until udev gives it away. The text is everybody's. */
static char *emuv_devnode(const struct device *dev, umode_t *mode)
{
	if (mode)
		*mode = MINOR(dev->devt) == MINOR(emuv_devt) + EMUV_INFO_MINOR ? 0444 : 0600;
	return NULL;
}

static const struct class emuv_class = {
	.name = "emuv",
	.dev_groups = emuv_groups,
	.devnode = emuv_devnode,
};

static struct cdev emuv_cdev, emuv_info_cdev;

int emuv_c_register(void)
{
	int error = alloc_chrdev_region(&emuv_devt, 0, EMUV_INSTANCES + 1, "emuv");

	if (error)
		return error;
	error = class_register(&emuv_class);
	if (error)
		goto no_class;
	cdev_init(&emuv_cdev, &emuv_fops);
	emuv_cdev.owner = THIS_MODULE;
	error = cdev_add(&emuv_cdev, emuv_devt, EMUV_INSTANCES);
	if (error)
		goto no_cdev;
	cdev_init(&emuv_info_cdev, &emuv_info_fops);
	emuv_info_cdev.owner = THIS_MODULE;
	error = cdev_add(&emuv_info_cdev, emuv_devt + EMUV_INFO_MINOR, 1);
	if (!error)
		return 0;
	cdev_del(&emuv_cdev);
no_cdev:
	class_unregister(&emuv_class);
no_class:
	unregister_chrdev_region(emuv_devt, EMUV_INSTANCES + 1);
	return error;
}

void emuv_c_unregister(void)
{
	cdev_del(&emuv_info_cdev);
	cdev_del(&emuv_cdev);
	class_unregister(&emuv_class);
	unregister_chrdev_region(emuv_devt, EMUV_INSTANCES + 1);
}

int emuv_c_device_add(unsigned int minor, const char *name, void *instance)
{
	return PTR_ERR_OR_ZERO(device_create(&emuv_class, NULL, emuv_devt + minor, instance, "%s", name));
}

void emuv_c_device_del(unsigned int minor)
{
	device_destroy(&emuv_class, emuv_devt + minor);
}

void emuv_c_changed(unsigned int minor)
{
	struct device *dev = class_find_device_by_devt(&emuv_class, emuv_devt + minor);
	char *env[] = { "EMUV_EVENT=limits", NULL };

	if (!dev)
		return;
	kobject_uevent_env(&dev->kobj, KOBJ_CHANGE, env);
	put_device(dev);
}

/* ---- memory ---- */

u64 emuv_c_ram_bytes(void)
{
	return (u64)totalram_pages() << PAGE_SHIFT;
}

u64 emuv_c_free_ram_bytes(void)
{
	return (u64)max(si_mem_available(), 0L) << PAGE_SHIFT;
}

struct page *emuv_c_new_page(bool one_of_many)
{
	return alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO |
			  (one_of_many ? __GFP_RETRY_MAYFAIL | __GFP_NOWARN : 0));
}

void emuv_c_get_page(struct page *page)
{
	get_page(page);
}

bool emuv_c_page_shared(struct page *page)
{
	return page_count(page) != 1;
}

void emuv_c_clear_page(struct page *page)
{
	clear_highpage(page);
	cond_resched();
}

bool emuv_c_go_on(void)
{
	cond_resched();
	return !fatal_signal_pending(current);
}

/* ---- an instance's VRAM as a region of the dmem cgroup controller; nothing where the kernel has none ---- */

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
