/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The line between the module's Rust (emuv_rs_*, in ffi.rs and ffi/) and its C (emuv_c_*, in emuv_shim.c).
 * Functions that return pointers return ERR_PTR() on error.
 */
#ifndef EMUV_SHIM_H
#define EMUV_SHIM_H

#include <linux/types.h>

struct file;
struct inode;
struct iov_iter;
struct kiocb;
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

/* Rust, called from C: file operations, as the kernel defines them, and attributes. */
int emuv_rs_open(struct inode *inode, struct file *file);
int emuv_rs_release(struct inode *inode, struct file *file);
loff_t emuv_rs_llseek(struct file *file, loff_t offset, int whence);
ssize_t emuv_rs_read_iter(struct kiocb *iocb, struct iov_iter *to);
ssize_t emuv_rs_write_iter(struct kiocb *iocb, struct iov_iter *from);
long emuv_rs_ioctl(struct file *file, unsigned int command, unsigned long argument);
__poll_t emuv_rs_poll(struct file *file, struct poll_table_struct *table);
int emuv_rs_mmap(struct file *file, struct vm_area_struct *vma);
ssize_t emuv_rs_info_read(struct file *file, char __user *to, size_t bytes, loff_t *position);
ssize_t emuv_rs_show(const void *instance, unsigned int attribute, char *page);
ssize_t emuv_rs_store(const void *instance, unsigned int attribute, const char *text, size_t length);

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
/* Lets others run; false if the task is being killed. */
bool emuv_c_go_on(void);

/* A region of the dmem cgroup controller; NULL if the kernel has none. */
void *emuv_c_dmem_add(const char *name, u64 bytes);
void emuv_c_dmem_del(void *region);
/* To the cgroup of the task. Each charge is undone once, whole. */
int emuv_c_dmem_charge(void *region, u64 bytes, void **pool);
void emuv_c_dmem_uncharge(void *pool, u64 bytes);

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
