import { createHmac } from 'node:crypto';

/** The headers of the Standard Webhooks specification 1.0.0, "Signature scheme": HMAC-SHA256 over id, time and body. */
export function signedHeaders(id: string, at: number, payload: string, secret: Uint8Array): Record<string, string> {
  const timestamp = String(Math.floor(at / 1_000));
  const signature = createHmac('sha256', secret).update(`${id}.${timestamp}.${payload}`).digest('base64');
  return { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': `v1,${signature}` };
}
