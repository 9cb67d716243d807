// SPDX-License-Identifier: GPL-2.0
/* Pages of an instance's RAM part in address spaces, and a range of them as a dma-buf. */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>

#include "emuv_shim.h"

MODULE_IMPORT_NS("DMA_BUF");

static vm_fault_t emuv_put_page_at(struct vm_fault *vmf, const void *opener, pgoff_t index)
{
	struct page *page = emuv_rs_page(opener, index, true);

	if (IS_ERR(page))
		return PTR_ERR(page) == -ENOMEM ? VM_FAULT_OOM : VM_FAULT_SIGBUS;
	vmf->page = page;
	return 0;
}

/* No private copies, so that every page a program sees is a page of the share; no code runs from it. */
static int emuv_prepare_vma(struct vm_area_struct *vma, u64 pages, const struct vm_operations_struct *ops, void *data)
{
	if (vma_is_cow_mapping(vma))
		return -EINVAL;
	if (vma->vm_flags & VM_EXEC)
		return -EPERM;
	if (vma->vm_pgoff > pages || vma_pages(vma) > pages - vma->vm_pgoff)
		return -EFBIG;
	vm_flags_mod(vma, VM_DONTEXPAND, VM_MAYEXEC);
	vma->vm_ops = ops;
	vma->vm_private_data = data;
	return 0;
}

static vm_fault_t emuv_fault(struct vm_fault *vmf)
{
	return emuv_put_page_at(vmf, vmf->vma->vm_private_data, vmf->pgoff);
}

static const struct vm_operations_struct emuv_vm_ops = { .fault = emuv_fault };

int emuv_mmap(struct file *file, struct vm_area_struct *vma)
{
	/* The mapping holds the file, and the file its opener. */
	return emuv_prepare_vma(vma, emuv_rs_end(file->private_data) >> PAGE_SHIFT, &emuv_vm_ops, file->private_data);
}

/* ---- dma-buf: the pages are there already and stay, because the buffer is a holder ---- */

struct emuv_export {
	void *opener;
	pgoff_t first;
	unsigned long pages;
};

static struct sg_table *emuv_map(struct dma_buf_attachment *attachment, enum dma_data_direction direction)
{
	struct emuv_export *export = attachment->dmabuf->priv;
	struct sg_table *table = kzalloc(sizeof(*table), GFP_KERNEL);
	struct scatterlist *entry;
	unsigned long i;
	int error;

	if (!table)
		return ERR_PTR(-ENOMEM);
	error = sg_alloc_table(table, export->pages, GFP_KERNEL);
	if (error)
		goto no_table;
	for_each_sgtable_sg(table, entry, i) {
		struct page *page = emuv_rs_page(export->opener, export->first + i, true);

		if (IS_ERR(page)) {
			error = PTR_ERR(page);
			goto no_pages;
		}
		sg_set_page(entry, page, PAGE_SIZE, 0);
		/* The instance keeps it for as long as the buffer holds the instance. */
		put_page(page);
	}
	error = dma_map_sgtable(attachment->dev, table, direction, 0);
	if (!error)
		return table;
no_pages:
	sg_free_table(table);
no_table:
	kfree(table);
	return ERR_PTR(error);
}

static void emuv_unmap(struct dma_buf_attachment *attachment, struct sg_table *table,
		       enum dma_data_direction direction)
{
	dma_unmap_sgtable(attachment->dev, table, direction, 0);
	sg_free_table(table);
	kfree(table);
}

static vm_fault_t emuv_export_fault(struct vm_fault *vmf)
{
	struct emuv_export *export = vmf->vma->vm_private_data;

	return emuv_put_page_at(vmf, export->opener, export->first + vmf->pgoff);
}

static const struct vm_operations_struct emuv_export_vm_ops = { .fault = emuv_export_fault };

static int emuv_export_mmap(struct dma_buf *buffer, struct vm_area_struct *vma)
{
	struct emuv_export *export = buffer->priv;

	return emuv_prepare_vma(vma, export->pages, &emuv_export_vm_ops, export);
}

static void emuv_export_release(struct dma_buf *buffer)
{
	struct emuv_export *export = buffer->priv;

	emuv_rs_close(export->opener);
	kfree(export);
}

static const struct dma_buf_ops emuv_export_ops = {
	.map_dma_buf = emuv_map,
	.unmap_dma_buf = emuv_unmap,
	.mmap = emuv_export_mmap,
	.release = emuv_export_release,
};

int emuv_c_export(void *opener, pgoff_t first, unsigned long pages)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct emuv_export *export = kmalloc(sizeof(*export), GFP_KERNEL);
	struct dma_buf *buffer;
	int fd;

	if (!export) {
		emuv_rs_close(opener);
		return -ENOMEM;
	}
	*export = (struct emuv_export){ .opener = opener, .first = first, .pages = pages };
	info.ops = &emuv_export_ops;
	info.size = (size_t)pages << PAGE_SHIFT;
	info.flags = O_RDWR | O_CLOEXEC;
	info.priv = export;
	buffer = dma_buf_export(&info);
	if (IS_ERR(buffer)) {
		emuv_rs_close(opener);
		kfree(export);
		return PTR_ERR(buffer);
	}
	fd = dma_buf_fd(buffer, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(buffer);
	return fd;
}
