import type pg from 'pg';
import type { Notification, NotificationStore } from '../domain/approvals/outbox.ts';
import type { Notice } from '../domain/approvals/store.ts';
import type { NewId } from '../domain/ids.ts';
import type { Instant } from '../domain/time.ts';
import { guarded } from './pool.ts';

export interface Outbox {
  /** Names of the endpoints that every notice of the tenant goes to. */
  endpoints: (tenant: string) => readonly string[];
  newId: NewId;
}

export async function insertNotifications(
  client: Pick<pg.ClientBase, 'query'>,
  outbox: Outbox,
  tenant: string,
  notices: readonly Notice[],
  now: Instant,
): Promise<void> {
  const endpoints = outbox.endpoints(tenant);
  if (endpoints.length === 0) return;
  for (const { type, data } of notices) {
    // The same bytes each time: the signature of a retry is over what was written with the act.
    const payload = JSON.stringify({ type, timestamp: new Date(now).toISOString(), data });
    await client.query(
      `INSERT INTO notifications (tenant, notification_id, endpoint, type, payload, created_at, due_at)
       SELECT $1, $2, endpoint, $4, $5, $6, $6 FROM unnest($3::text[]) AS e(endpoint)`,
      [tenant, outbox.newId('msg'), endpoints, type, payload, new Date(now)],
    );
  }
}

export function createNotificationStore(pool: pg.Pool): NotificationStore {
  const end = (message: Notification, set: string, ...values: unknown[]) =>
    guarded(async () => {
      await pool.query(`UPDATE notifications SET ${set} WHERE tenant = $1 AND notification_id = $2 AND endpoint = $3`, [
        message.tenant,
        message.notificationId,
        message.endpoint,
        ...values,
      ]);
    });
  return {
    claim: (endpoint, now, claimFor, limit) =>
      guarded(async () => {
        // Index notifications_due.
        const { rows } = await pool.query<Record<string, unknown>>(
          `UPDATE notifications n SET due_at = $3, attempts = n.attempts + 1
           FROM (SELECT tenant, notification_id, endpoint FROM notifications
             WHERE endpoint = $1 AND due_at <= $2 AND delivered_at IS NULL AND given_up_at IS NULL
             ORDER BY due_at LIMIT $4 FOR UPDATE SKIP LOCKED) due
           WHERE n.tenant = due.tenant AND n.notification_id = due.notification_id AND n.endpoint = due.endpoint
           RETURNING n.*`,
          [endpoint, new Date(now), new Date(now + claimFor), limit],
        );
        return rows
          .map((row) => ({
            tenant: row['tenant'] as string,
            notificationId: row['notification_id'] as string,
            endpoint: row['endpoint'] as string,
            type: row['type'] as string,
            payload: row['payload'] as string,
            createdAt: (row['created_at'] as Date).getTime(),
            attempts: row['attempts'] as number,
          }))
          .sort((a, b) => (a.notificationId < b.notificationId ? -1 : 1));
      }),
    delivered: (message, now) => end(message, 'delivered_at = $4, last_error = NULL', new Date(now)),
    failed: (message, error, retryAt) => end(message, 'last_error = $4, due_at = $5', error, new Date(retryAt)),
    gaveUp: (message, error, now) => end(message, 'last_error = $4, given_up_at = $5', error, new Date(now)),
    forget: (before) =>
      guarded(async () => {
        const { rowCount } = await pool.query(
          `DELETE FROM notifications WHERE created_at < $1 AND (delivered_at IS NOT NULL OR given_up_at IS NOT NULL)`,
          [new Date(before)],
        );
        return rowCount ?? 0;
      }),
  };
}
