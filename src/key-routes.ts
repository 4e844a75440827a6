import { jwksCacheAge, statusListTtl } from './root-bounds.ts';
import type { HttpRoute } from './server/http-route.ts';

export function jwksRoute(base: string, jwks: () => object): HttpRoute {
  return {
    method: 'GET',
    path: `${base}/.well-known/jwks.json`,
    handler: () => ({
      status: 200,
      headers: {
        'content-type': 'application/jwk-set+json',
        'cache-control': `public, max-age=${jwksCacheAge / 1_000}`,
      },
      body: JSON.stringify(jwks()),
    }),
  };
}

export function statusListRoute(base: string, list: (number: number) => Promise<string>): HttpRoute {
  return {
    method: 'GET',
    path: `${base}/status-lists/*`,
    handler: async ({ path }) => {
      const number = path.slice(`${base}/status-lists/`.length);
      if (!/^[0-9]{1,9}$/.test(number)) return { status: 404 };
      return {
        status: 200,
        headers: {
          'content-type': 'application/statuslist+jwt',
          'cache-control': `public, max-age=${statusListTtl / 1_000}`,
        },
        body: await list(Number(number)),
      };
    },
  };
}
