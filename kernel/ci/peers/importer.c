// SPDX-License-Identifier: GPL-2.0
/* A driver that takes a dma-buf as a device would, changes each byte of its pages by one, and is gone again. */
#include <linux/device.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/highmem.h>
#include <linux/module.h>
#include <linux/scatterlist.h>

MODULE_IMPORT_NS("DMA_BUF");

static int fd = -1;
module_param(fd, int, 0444);

static void change(struct sg_table *table)
{
	struct sg_page_iter iter;
	size_t i;

	for_each_sgtable_page(table, &iter, 0) {
		u8 *bytes = kmap_local_page(sg_page_iter_page(&iter));

		for (i = 0; i < PAGE_SIZE; i++)
			bytes[i]++;
		kunmap_local(bytes);
	}
}

static int import(struct device *dev)
{
	struct dma_buf *buffer = dma_buf_get(fd);
	struct dma_buf_attachment *attachment;
	struct sg_table *table;
	int error = 0;

	if (IS_ERR(buffer))
		return PTR_ERR(buffer);
	attachment = dma_buf_attach(buffer, dev);
	if (IS_ERR(attachment)) {
		error = PTR_ERR(attachment);
		goto no_attachment;
	}
	table = dma_buf_map_attachment_unlocked(attachment, DMA_BIDIRECTIONAL);
	if (IS_ERR(table)) {
		error = PTR_ERR(table);
	} else {
		change(table);
		dma_buf_unmap_attachment_unlocked(attachment, table, DMA_BIDIRECTIONAL);
	}
	dma_buf_detach(buffer, attachment);
no_attachment:
	dma_buf_put(buffer);
	return error;
}

static int __init importer_init(void)
{
	static u64 everywhere = DMA_BIT_MASK(64);
	struct device *dev = root_device_register("emuv-importer");
	int error;

	if (IS_ERR(dev))
		return PTR_ERR(dev);
	dev->dma_mask = &everywhere;
	dev->coherent_dma_mask = everywhere;
	error = import(dev);
	root_device_unregister(dev);
	/* Nothing is left to stay for: this number says that it went well. */
	return error ? error : -ECANCELED;
}
module_init(importer_init);

MODULE_DESCRIPTION("Takes a dma-buf, for tests");
MODULE_LICENSE("GPL");
