import type pg from 'pg';
import { guarded } from './pool.ts';

/** What somebody should look at, by provider and target. */
export interface TargetAlarm {
  provider: string;
  target: string;
  /** Leases whose settlement failed and has not succeeded. */
  troubled: number;
  irrevocable: number;
  /** Due by now, whether or not anything is wrong. */
  due: number;
  /** Age of the oldest settlement that is not done, in seconds. */
  oldest: number;
  /** Most attempts at one lease. */
  attempts: number;
  /** Of the last comparison. */
  strays: number;
  missing: number;
  /** When leases and target were last compared, in seconds since the epoch; 0: never. */
  comparedAt: number;
}

/** Targets are few (the configured ones, and removed ones that still have leases), but a bound is a bound. */
const mostTargets = 200;

/** Indexes leases_troubled and leases_due (which clock_timestamp(), being volatile, could not be looked up in). */
export async function readAlarms(pool: pg.Pool): Promise<TargetAlarm[]> {
  return await guarded(async () => {
    const { rows } = await pool.query<TargetAlarm>({
      name: 'settlement-alarms',
      text: `WITH trouble AS (
          SELECT provider, split_part(handle, '/', 1) AS target,
            count(*) FILTER (WHERE state <> 'settled') AS troubled,
            count(*) FILTER (WHERE outcome = 'irrevocable') AS irrevocable,
            max(settle_attempts) AS attempts, min(settling_since) FILTER (WHERE state <> 'settled') AS since
          FROM leases
          WHERE (outcome = 'irrevocable' OR (state <> 'settled' AND settle_error IS NOT NULL)) AND abandoned_at IS NULL
          GROUP BY 1, 2
        ), due AS (
          SELECT provider, split_part(handle, '/', 1) AS target, count(*) AS due, min(settle_at) AS since
          FROM leases WHERE state <> 'settled' AND settle_at <= now() GROUP BY 1, 2
        ), compared AS (
          SELECT provider, target, sum(strays) AS strays, sum(missing) AS missing, max(finished_at) AS finished_at
          FROM reconciliations GROUP BY 1, 2
        )
        SELECT provider, target, COALESCE(t.troubled, 0)::float8 AS troubled, COALESCE(t.irrevocable, 0)::float8 AS irrevocable,
          COALESCE(d.due, 0)::float8 AS due, COALESCE(t.attempts, 0)::float8 AS attempts,
          COALESCE(c.strays, 0)::float8 AS strays, COALESCE(c.missing, 0)::float8 AS missing,
          COALESCE(extract(epoch FROM c.finished_at), 0)::float8 AS "comparedAt",
          GREATEST(0, COALESCE(extract(epoch FROM clock_timestamp() - LEAST(t.since, d.since)), 0))::float8 AS oldest
        FROM trouble t FULL JOIN due d USING (provider, target) FULL JOIN compared c USING (provider, target)
        ORDER BY provider, target LIMIT ${mostTargets}`,
    });
    return rows;
  });
}
