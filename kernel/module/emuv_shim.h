/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The line between the module's Rust (emuv_rs_*, module/ffi.rs) and its C (emuv_c_*, in the C files).
 *
 * An opener is what an open file, or an exported buffer, holds of an instance; emuv_rs_open() makes it and emuv_rs_close() ends it.
 * Functions that return pointers return ERR_PTR() on error.
 */
#ifndef EMUV_SHIM_H
#define EMUV_SHIM_H

#include <linux/types.h>

struct file;
struct page;
struct poll_table_struct;
struct vm_area_struct;

#define EMUV_INSTANCES 64
/* The minor of /dev/emuv, after those of the instances. */
#define EMUV_INFO_MINOR EMUV_INSTANCES

/* Attributes of an instance: RO() can be read, RW() written by root too. Rust has their numbers (EMUV_ATTRIBUTE_...). */
#define EMUV_ATTRIBUTES(RO, RW) \
	RO(vram_info) RO(gpu) RO(label) RO(instance_id) RO(total_bytes) RW(physical_bytes) RW(virtual_bytes) \
	RO(physical_used_bytes) RO(virtual_used_bytes) RO(physical_peak_bytes) RO(virtual_peak_bytes) \
	RO(resident_bytes) RO(holders) RO(generation)
#define EMUV_ATTRIBUTE_NUMBER(_name) EMUV_ATTRIBUTE_##_name,
enum emuv_attribute { EMUV_ATTRIBUTES(EMUV_ATTRIBUTE_NUMBER, EMUV_ATTRIBUTE_NUMBER) };

/* Rust, called from C. */
void *emuv_rs_open(unsigned int minor);
void emuv_rs_close(void *opener);
/* Bytes of the RAM part. */
u64 emuv_rs_end(const void *opener);
/*
 * A page of the RAM part with a reference for the caller. If it is not there: made when create, else NULL.
 * -EFBIG: beyond the end; -ENOSPC: no room in the share; -ENOMEM; -ENODEV.
 */
struct page *emuv_rs_page(const void *opener, pgoff_t index, bool create);
long emuv_rs_ioctl(const void *opener, unsigned int command, unsigned long argument);
__poll_t emuv_rs_poll(const void *opener, struct file *file, struct poll_table_struct *table);
ssize_t emuv_rs_show(const void *instance, unsigned int attribute, char *page);
ssize_t emuv_rs_store(const void *instance, unsigned int attribute, const char *text, size_t length);
/* What /dev/emuv prints, into a page. */
ssize_t emuv_rs_info(char *page);

/* C, called from Rust. */
int emuv_c_register(void);
void emuv_c_unregister(void);
int emuv_c_device_add(unsigned int minor, const char *name, void *instance);
/* Returns when nobody is in an attribute of the device any more. */
void emuv_c_device_del(unsigned int minor);
/* Tells user space (uevent) that the limits of the device changed. */
void emuv_c_changed(unsigned int minor);
u64 emuv_c_ram_bytes(void);
u64 emuv_c_free_ram_bytes(void);
/* Zeroed, charged to the memory cgroup; or NULL. If one of many, no process is killed to make room. */
struct page *emuv_c_new_page(bool one_of_many);
void emuv_c_get_page(struct page *page);
/* Whether anybody but its owner has a reference to the page. */
bool emuv_c_page_shared(struct page *page);
void emuv_c_clear_page(struct page *page);
/* A descriptor of a dma-buf of these pages, or an error. Takes the opener in either case. */
int emuv_c_export(void *opener, pgoff_t first, unsigned long pages);

/* A region of the dmem cgroup controller; NULL if the kernel has none. */
void *emuv_c_dmem_add(const char *name, u64 bytes);
void emuv_c_dmem_del(void *region);
/* To the cgroup of the task. Each charge is undone once, whole. */
int emuv_c_dmem_charge(void *region, u64 bytes, void **pool);
void emuv_c_dmem_uncharge(void *pool, u64 bytes);

/* C, called from C. */
int emuv_mmap(struct file *file, struct vm_area_struct *vma);

/* Module parameters, set before the module starts. */
extern char *emuv_gpu_model[EMUV_INSTANCES];
extern int emuv_gpu_models;
extern unsigned int emuv_physical_vram_gb[EMUV_INSTANCES];
extern int emuv_physical_vram_gbs;
extern unsigned int emuv_virtual_vram_gb[EMUV_INSTANCES];
extern int emuv_virtual_vram_gbs;
extern unsigned int emuv_instance_id[EMUV_INSTANCES];
extern int emuv_instance_ids;
extern bool emuv_lazy_allocation;
extern bool emuv_debug_mode;

#endif
