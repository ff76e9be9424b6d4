// The certified OpenID provider, with people who need only be named: the header x-account says who sits at the browser.
import Provider from 'oidc-provider';
import { generateKeyPairSync } from 'node:crypto';
const [port, callback, kid] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const key = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ format: 'jwk' });
const groups = { alice: ['ops', 'dev'], bob: [], root: ['moorline:admins', 'system:masters'] };
const gone = new Set(); // accounts that were deactivated: POST /deactivate/NAME
const client = { redirect_uris: [callback], id_token_signed_response_alg: 'ES256',
  grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'] };
const provider = new Provider(issuer, {
  clients: [{ ...client, client_id: 'moorline', client_secret: 'a secret/of+both' },
            { ...client, client_id: 'other', client_secret: 'another secret' }],
  jwks: { keys: [{ ...key, kid, use: 'sig', alg: 'ES256' }] },
  claims: { openid: ['sub'], profile: ['preferred_username', 'name'], groups: ['groups'] },
  scopes: ['openid', 'profile', 'groups', 'offline_access'],
  conformIdTokenClaims: process.env.IN_USERINFO === 'yes',
  rotateRefreshToken: true,
  issueRefreshToken: async () => true,
  features: { devInteractions: { enabled: false }, deviceFlow: { enabled: true } },
  cookies: { keys: ['one'] },
  interactions: { url: (ctx, interaction) => `/interaction/${interaction.uid}` },
  findAccount: async (ctx, sub) => sub.startsWith('gone') || gone.has(sub) ? undefined : { accountId: sub, claims: async () =>
    ({ sub, preferred_username: sub.replace('id-', ''), name: 'Name of ' + sub, groups: groups[sub.replace('id-', '')] }) },
});
provider.use(async (ctx, next) => {
  const left = ctx.path.match(/^\/deactivate\/(.+)$/);
  if (left) { gone.add('id-' + left[1]); ctx.status = 204; return; }
  const m = ctx.path.match(/^\/interaction\/(.+)$/);
  if (!m) return next();
  const details = await provider.interactionDetails(ctx.req, ctx.res);
  const accountId = 'id-' + ctx.get('x-account');
  const grant = new provider.Grant({ accountId, clientId: details.params.client_id });
  grant.addOIDCScope('openid profile groups offline_access');
  const grantId = await grant.save();
  await provider.interactionFinished(ctx.req, ctx.res, { login: { accountId }, consent: { grantId } });
  ctx.respond = false;
});
provider.listen(Number(port), '127.0.0.1');
