import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import type pg from 'pg';
import { fieldInvalid } from '../domain/errors.ts';
import { isId } from '../domain/ids.ts';

/** The numbers of one tenant's audit events as callers see them. */
export interface EventIds {
  hide(numbers: readonly string[]): string[];
  /** Of a page token. Throws FIELD_INVALID for what this tenant was never given. */
  reveal(id: string): string;
}

const block = 16;
const none = Buffer.alloc(0);

/**
 * One sequence numbers the events of all tenants, so that issuing waits for no counter; gaps between the numbers of one
 * tenant would tell it how much the others do. An id is the number and eight zero bytes as one block of AES: the same
 * number is always the same id, on every replica, and an id that was made up does not open.
 */
export function createEventIds(pool: pg.Pool): (tenant: string) => Promise<EventIds> {
  // As many as tenants are configured.
  const known = new Map<string, Promise<EventIds>>();
  return (tenant) => {
    let ids = known.get(tenant);
    if (ids === undefined) {
      ids = keyOf(pool, tenant).then(eventIdsOf);
      known.set(tenant, ids);
      ids.catch(() => known.delete(tenant));
    }
    return ids;
  };
}

async function keyOf(pool: pg.Pool, tenant: string): Promise<Buffer> {
  const read = async () =>
    (await pool.query<{ key: Buffer }>('SELECT key FROM event_id_keys WHERE tenant = $1', [tenant])).rows[0]?.key;
  const key = await read();
  if (key !== undefined) return key;
  // Another replica may do the same at this moment; the first one's holds.
  await pool.query('INSERT INTO event_id_keys (tenant, key) VALUES ($1, $2) ON CONFLICT DO NOTHING', [
    tenant,
    randomBytes(block),
  ]);
  return (await read())!;
}

function eventIdsOf(key: Uint8Array): EventIds {
  return {
    hide: (numbers) => {
      const plain = Buffer.alloc(numbers.length * block);
      numbers.forEach((number, index) => plain.writeBigInt64BE(BigInt(number), index * block));
      const cipher = createCipheriv('aes-128-ecb', key, none).setAutoPadding(false);
      const hidden = cipher.update(plain, undefined, 'hex') + cipher.final('hex');
      return numbers.map((_, index) => `evt_${hidden.slice(index * 2 * block, (index + 1) * 2 * block)}`);
    },
    reveal: (id) => {
      const refused = () => fieldInvalid('page_token', 'is not one that this method answered with');
      if (!isId('evt', id)) throw refused();
      const decipher = createDecipheriv('aes-128-ecb', key, none).setAutoPadding(false);
      const plain = Buffer.concat([decipher.update(id.slice(4), 'hex'), decipher.final()]);
      if (plain.readBigUInt64BE(8) !== 0n) throw refused();
      return String(plain.readBigInt64BE(0));
    },
  };
}
