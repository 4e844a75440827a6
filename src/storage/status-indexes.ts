import type pg from 'pg';

/** Taken at once: a counter that every open waited for would let one commit at a time. What is not used is a gap. */
const block = 512;

/**
 * Positions in a tenant's token status lists, from a counter of its own: a position says nothing about how many tasks others
 * open. A replica takes a block at a time.
 */
export function createStatusIndexes(pool: pg.Pool): (tenant: string) => Promise<number> {
  const left = new Map<string, { next: number; end: number }>();
  const taking = new Map<string, Promise<void>>();

  async function take(tenant: string): Promise<void> {
    const { rows } = await pool.query<{ start: string }>({
      name: 'take-status-indexes',
      text: `INSERT INTO status_indexes AS s (tenant, taken) VALUES ($1, $2)
        ON CONFLICT (tenant) DO UPDATE SET taken = s.taken + $2 RETURNING first_index + taken - $2 AS start`,
      values: [tenant, block],
    });
    const start = Number(rows[0]!.start);
    left.set(tenant, { next: start, end: start + block });
  }

  return async (tenant) => {
    for (;;) {
      const range = left.get(tenant);
      if (range !== undefined && range.next < range.end) return range.next++;
      let running = taking.get(tenant);
      if (running === undefined) {
        running = take(tenant).finally(() => taking.delete(tenant));
        taking.set(tenant, running);
      }
      await running;
    }
  };
}
