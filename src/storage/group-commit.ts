import { BrokerError } from '../domain/errors.ts';

export interface GroupCommitOptions<T, R> {
  /** Most items in one transaction. */
  maxBatch: number;
  /** Most items waiting, and three quarters of it for one tenant; one more is refused with RATE_LIMITED. */
  maxQueue: number;
  tenantOf(item: T): string;
  /** Writes the items in one transaction; answers in their order. Throws when nothing was committed, or it cannot tell. */
  flush(items: readonly T[]): Promise<readonly R[]>;
  /** A failed batch is tried item by item when the database refused it (a row's own fault), not when it was lost. */
  isRefusal(error: unknown): boolean;
}

interface Waiting<T, R> {
  item: T;
  resolve: (result: R) => void;
  reject: (error: unknown) => void;
}

/**
 * Group commit (design §5): items that wait are written together. A flush starts when the previous one ends, with no
 * timer, so that an idle broker adds no delay and a busy one shares each fsync among many callers.
 */
export class GroupCommit<T, R> {
  readonly #options: GroupCommitOptions<T, R>;
  #queue: Waiting<T, R>[] = [];
  /** Items in the queue, by tenant. */
  readonly #waiting = new Map<string, number>();
  #running = false;

  constructor(options: GroupCommitOptions<T, R>) {
    this.#options = options;
  }

  write(item: T): Promise<R> {
    const { maxQueue, tenantOf } = this.#options;
    const tenant = tenantOf(item);
    const own = this.#waiting.get(tenant) ?? 0;
    if (this.#queue.length >= maxQueue || own >= (maxQueue * 3) / 4) {
      return Promise.reject(
        new BrokerError('RATE_LIMITED', 'the broker has too many changes waiting to be written: retry shortly', {
          retryAfterMs: 250,
        }),
      );
    }
    this.#waiting.set(tenant, own + 1);
    return new Promise<R>((resolve, reject) => {
      this.#queue.push({ item, resolve, reject });
      if (!this.#running) {
        this.#running = true;
        // After the I/O events of this turn: requests that arrived together are written together.
        setImmediate(() => void this.#run());
      }
    });
  }

  /** Resolves when nothing is waiting. */
  async drained(): Promise<void> {
    while (this.#running) await new Promise((resolve) => setImmediate(resolve));
  }

  async #run(): Promise<void> {
    while (this.#queue.length > 0) {
      await this.#flush(this.#next());
    }
    this.#running = false;
  }

  /** In the order of arrival; when not all fit, one of each tenant in turn, so that nobody waits behind another's rush. */
  #next(): Waiting<T, R>[] {
    const { maxBatch, tenantOf } = this.#options;
    if (this.#queue.length <= maxBatch || this.#waiting.size === 1) {
      const batch = this.#queue.splice(0, maxBatch);
      for (const { item } of batch) this.#left(tenantOf(item));
      return batch;
    }
    const byTenant = Map.groupBy(this.#queue, ({ item }) => tenantOf(item));
    const chosen = new Set<Waiting<T, R>>();
    for (let turn = 0; chosen.size < maxBatch; turn++) {
      for (const [tenant, waiting] of byTenant) {
        const next = waiting[turn];
        if (next === undefined || chosen.size === maxBatch) continue;
        chosen.add(next);
        this.#left(tenant);
      }
    }
    this.#queue = this.#queue.filter((waiting) => !chosen.has(waiting));
    return [...chosen];
  }

  #left(tenant: string): void {
    const waiting = this.#waiting.get(tenant)! - 1;
    if (waiting === 0) this.#waiting.delete(tenant);
    else this.#waiting.set(tenant, waiting);
  }

  async #flush(batch: readonly Waiting<T, R>[]): Promise<void> {
    try {
      const results = await this.#options.flush(batch.map((waiting) => waiting.item));
      batch.forEach((waiting, index) => waiting.resolve(results[index]!));
    } catch (error) {
      if (batch.length > 1 && this.#options.isRefusal(error)) {
        for (const waiting of batch) await this.#flush([waiting]);
      } else {
        for (const waiting of batch) waiting.reject(error);
      }
    }
  }
}
