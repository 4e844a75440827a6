/** Follows page tokens (AIP-158) until `limit` items are there or the last page is. */
export async function pages<T>(
  options: { limit: number; pageToken?: string },
  fetch: (page: { pageSize: number; pageToken: string }) => Promise<{ items: T[]; nextPageToken: string }>,
): Promise<{ items: T[]; nextPageToken: string }> {
  const items: T[] = [];
  let nextPageToken = options.pageToken ?? '';
  do {
    const pageSize = Math.min(1_000, options.limit - items.length);
    const page = await fetch({ pageSize, pageToken: nextPageToken });
    items.push(...page.items);
    nextPageToken = page.nextPageToken;
    // An empty page with a token is allowed by AIP-158; one that repeats for ever is not ours to follow.
    if (page.items.length === 0) break;
  } while (nextPageToken !== '' && items.length < options.limit);
  return { items, nextPageToken };
}
