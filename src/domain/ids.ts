import type { Instant, RandomBytes } from './time.ts';

export type IdPrefix = 'tsk' | 'lse' | 'apr' | 'msg' | 'rep' | 'dec';

/** Makes `<prefix>_<uuidv7 hex>` (RFC 9562 §5.7): sortable by time, so that new rows land at the end of the index. */
export type NewId = (prefix: IdPrefix) => string;

export function idFactory(now: () => Instant, random: RandomBytes): NewId {
  return (prefix) => {
    const bytes = Buffer.from(random(16));
    bytes.writeUIntBE(now(), 0, 6);
    bytes[6] = 0x70 | (bytes[6]! & 0x0f);
    bytes[8] = 0x80 | (bytes[8]! & 0x3f);
    return `${prefix}_${bytes.toString('hex')}`;
  };
}

const pattern = /^(tsk|lse|apr|msg|rep|dec)_[0-9a-f]{32}$/;

export function isId(prefix: IdPrefix, value: string): boolean {
  return pattern.test(value) && value.startsWith(`${prefix}_`);
}
