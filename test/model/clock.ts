import type pg from 'pg';
import type { Clock, Millis } from '../../src/domain/time.ts';

/** The time of the estate, which only goes forward: that of the brokers, of their database, and of whoever calls them. */
export interface EstateClock extends Clock {
  /** By so much, at once. */
  advance(by: Millis): Promise<void>;
  /** When it last did, by the machine's clock. */
  advancedAt: number;
}

/**
 * What brokers must put in their connection string for the database to tell them the estate's time. pg_catalog is searched
 * first unless the path names it; named behind leasehold, `clock_timestamp()` is the function made below.
 */
export const estateTimeOptions = '-c search_path=leasehold,pg_catalog -c timezone=UTC';

/**
 * Replicas take their clock as a parameter, but what must hold across them they leave to the database's. Moving theirs
 * alone would make a broken clock, which they notice. Setting the rows back in time instead would leave behind what is
 * held in memory, was signed, or is held by an agent. So the database gets a clock that can be moved as well, and the two
 * are moved together: for all of it this is the same as if that much time had passed and nobody had called.
 *
 * The brokers go first. Until the database follows, a moment later, theirs is ahead: a broker that compares the two at just
 * that moment refuses to issue, and ends nothing early, until it compares again.
 */
export async function createEstateClock(database: pg.Client): Promise<EstateClock> {
  await database.query(`
    CREATE TABLE leasehold.estate_clock (ahead interval NOT NULL);
    INSERT INTO leasehold.estate_clock VALUES ('0');
    GRANT SELECT ON leasehold.estate_clock TO leasehold_broker;
    CREATE FUNCTION leasehold.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
      AS 'SELECT pg_catalog.clock_timestamp() + ahead FROM leasehold.estate_clock';
    CREATE FUNCTION leasehold.now() RETURNS timestamptz LANGUAGE sql STABLE
      AS 'SELECT pg_catalog.now() + ahead FROM leasehold.estate_clock';
    DO $$
    DECLARE of record;
    BEGIN
      FOR of IN SELECT table_name, column_name FROM information_schema.columns
        WHERE table_schema = 'leasehold' AND column_default = 'clock_timestamp()'
      LOOP
        EXECUTE format('ALTER TABLE leasehold.%I ALTER %I SET DEFAULT leasehold.clock_timestamp()', of.table_name, of.column_name);
      END LOOP;
    END
    $$`);
  let ahead = 0;
  const clock: EstateClock = {
    now: () => Date.now() + ahead,
    advancedAt: 0,
    advance: async (by) => {
      ahead += by;
      clock.advancedAt = Date.now();
      await database.query(`UPDATE leasehold.estate_clock SET ahead = ahead + $1 * interval '1 millisecond'`, [by]);
    },
  };
  return clock;
}
